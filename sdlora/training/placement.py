"""Where and how a training computes: device, precision, attention, checkpoints of activations."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from sdlora import hardware
from sdlora.errors import SdloraError
from sdlora.models import Components
from sdlora.training import processes, sharding, units
from sdlora.training.config import TrainConfig

LEFT = ("_gradient_checkpointing_func", "_require_grads_hooks")  # what the libraries leave on a network
SMALL = 32  # latents up to this wide: attention over at most 1024 places


def device(wanted: str = "auto") -> torch.device:
    """`auto` is what accelerate gives this process: the accelerator if there is one, or what `accelerate launch` was told."""
    several = processes.launched() > 1
    if several and wanted not in ("auto", "cpu"):
        raise SdloraError(f"device is {wanted!r}, and {processes.launched()} processes were launched; with device=auto each gets its own")
    if wanted == "auto" or several:
        own = processes.world().device if several else _launched()
        if several and wanted == "cpu" and own.type != "cpu":
            raise SdloraError("device is cpu, and accelerate gave each process a GPU; launch with --cpu")
        return own
    return hardware.device(wanted)


def _launched() -> torch.device:
    from accelerate import PartialState

    return PartialState().device


def unused(components: Components, config: TrainConfig) -> list[nn.Module]:
    """What the steps do without, once all is encoded: the VAE, and text encoders of which none learns."""
    encoders = [] if config.trains_text else list(components.text_encoders)
    return [components.vae, *encoders]


def precision(wanted: str, where: torch.device) -> str:
    """`auto`: what `accelerate launch --mixed_precision` says, else bf16 where the hardware computes with it."""
    if wanted != "auto":
        return wanted
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "")
    if launched in ("no", "bf16", "fp16"):
        return "fp32" if launched == "no" else launched
    if where.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if where.type == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    """Instructions for bf16 products (AVX512-BF16, and so AMX too); elsewhere bf16 has to be asked for."""
    probe = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe() and native and native())


@contextmanager
def prepared(components: Components, config: TrainConfig) -> Iterator[None]:
    """Attention and VAE as the settings say, the U-Net's parts joined (training/units), and as before afterwards.

    "auto" attention, measured in one thread, 16 × 16 latents, batch 16, rank 8: the classic processor in bf16 takes 0.83 of SDPA's
    time; in fp32 SDPA is the faster one, 0.95.
    """
    from diffusers.models.attention_processor import AttnProcessor

    unet: Any = components.unet
    processors, tiled = dict(unet.attn_processors), components.vae.use_tiling
    small = components.device.type == "cpu" and unet.config.sample_size <= SMALL and config.precision == "bf16"
    try:
        if config.attention == "auto" and small:
            unet.set_attn_processor(AttnProcessor())
        hardware.set_attention(unet, config.attention)
        hardware.set_tiling(components.vae, config.vae_tiling)
        # a compiler sees more in the parts; a split base's weights are there while their module is called
        parts = config.compile or sharding.told()
        with nullcontext() if parts else units.joined(unet):
            yield
    finally:
        unet.set_attn_processor(processors)
        hardware.set_tiling(components.vae, tiled)


@contextmanager
def checkpointing(components: Components, config: TrainConfig) -> Iterator[None]:
    """Inside, and if the settings say so, the U-Net and the text encoders that learn keep no activations but those between
    their blocks, and compute the others a second time for the gradient (Chen et al. 2016, arXiv:1604.06174)."""
    encoders: list[Any] = [module for name, module in components.modules.items() if name != "unet" and name in config.learning]
    if config.gradient_checkpointing:
        components.unet.enable_gradient_checkpointing()
        for encoder in encoders:
            encoder.gradient_checkpointing_enable({"use_reentrant": False})
            encoder.train()  # transformers keeps activations in evaluation; CLIP's text encoders know no other difference
    try:
        yield
    finally:
        if config.gradient_checkpointing:
            components.unet.disable_gradient_checkpointing()
            for encoder in encoders:
                encoder.gradient_checkpointing_disable()
                encoder.eval()
                if hasattr(encoder, "_require_grads_hook"):  # transformers 5 puts it onto the token embedding, and leaves it there
                    encoder.disable_input_require_grads()
            for part in (part for network in (components.unet, *encoders) for part in network.modules()):
                for name in LEFT:
                    vars(part).pop(name, None)


@contextmanager
def deterministic(where: torch.device) -> Iterator[None]:
    """On CUDA, kernels whose sums come in a fixed order, as far as there are any: a resumed run should be the same run."""
    if where.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
