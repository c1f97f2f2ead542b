"""Where a model computes, how precisely, what makes it fit and what it took: devices, attention, tiling, moving parts, peak memory."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdlora.errors import SdloraError, nearest

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICES = ("auto", "cuda", "mps", "cpu")
ATTENTION = ("auto", "sdpa", "xformers")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # man 5 proc


def device(wanted: str = "auto") -> torch.device:
    """ "auto" is CUDA where there is one, else Apple's MPS, else the CPU; "cuda:1" is a second GPU. SdloraError if it is not there."""
    name, colon, number = wanted.partition(":")
    if name not in DEVICES or (colon and not (name == "cuda" and number.isdigit())):
        raise SdloraError(f"unknown device {wanted!r}{nearest(wanted, DEVICES)}")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(kind for kind, here in there.items() if here))
    if not there[name]:
        found = f"device is {wanted!r}, and PyTorch finds no {name.upper()} here"
        raise SdloraError(f"{found}; take cpu, or install a build of PyTorch for this machine")
    if colon and int(number) >= torch.cuda.device_count():
        raise SdloraError(f"device is {wanted!r}, and PyTorch finds {torch.cuda.device_count()} here; they are numbered from cuda:0")
    return torch.device(wanted)


def dtype(precision: str) -> torch.dtype:
    if precision not in PRECISIONS:
        raise SdloraError(f"unknown precision {precision!r}{nearest(precision, PRECISIONS)}")
    return PRECISIONS[precision]


def set_attention(unet: Any, how: str = "auto") -> None:
    """ "auto" leaves diffusers' choice (PyTorch's scaled_dot_product_attention), "sdpa" insists on it, "xformers" needs its package."""
    from diffusers.models import attention_processor as processors

    if how not in ATTENTION:
        raise SdloraError(f"unknown attention {how!r}{nearest(how, ATTENTION)}")
    if how == "xformers":
        if find_spec("xformers") is None:
            raise SdloraError("attention is xformers, which is not installed; pip install xformers, or take attention sdpa")
        if unet.device.type != "cuda":
            raise SdloraError(f"attention is xformers, which needs CUDA, and the model is on {unet.device}; take attention sdpa")
        unet.set_attn_processor(processors.XFormersAttnProcessor())
    elif how == "sdpa":
        unet.set_attn_processor(processors.AttnProcessor2_0())


def set_tiling(vae: Any, tiling: bool) -> None:
    """Whether the VAE takes pictures larger than its own size in overlapping tiles: less memory, nearly the same values."""
    (vae.enable_tiling if tiling else vae.disable_tiling)()


@contextmanager
def resident(modules: Iterable[nn.Module], where: torch.device | None) -> Iterator[None]:
    """Inside, the modules are on `where`; afterwards back where each of them was. None leaves them."""
    before = [(module, next(module.parameters()).device) for module in modules]
    try:
        if where is not None:
            for module, _ in before:
                _move(module, where)
        yield
    finally:
        for module, home in before:
            if next(module.parameters()).device != home:
                _move(module, home)
        if where is not None and where.type == "cuda":
            torch.cuda.empty_cache()


def _move(module: nn.Module, where: torch.device) -> None:
    """Weights that were moved in inference mode could never be written to again, and a fused adapter is written into them."""
    with torch.inference_mode(False), torch.no_grad():
        module.to(where)


def release(modules: Iterable[nn.Module]) -> None:
    """Give the memory of the weights back for good; names and shapes stay (meta device)."""
    for module in modules:
        module.to("meta")


def forget_peak(device: torch.device) -> bool:
    """Peak memory is counted anew from here; False where the system cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR.write_text("5")  # resets VmHWM
    except OSError:
        return False
    return True


def peak(device: torch.device) -> int | None:
    """Bytes, the most since `forget_peak`: of the allocator on CUDA, else of the process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def check_compiling(where: torch.device) -> None:
    """SdloraError on the CPU, where networks that are compiled are drawn with in more time, and not in less, than with those of
    sdlora.lean: docs/benchmarks has how much."""
    if where.type == "cpu" and torch.backends.mkldnn.is_available():
        found = "compile is set, and on the CPU a compiled U-Net is slower than one that is not"
        raise SdloraError(f"{found} (docs/benchmarks says by how much); leave it out, it is for GPUs")


def compile_calls(module: nn.Module, backend: str = "inductor") -> None:
    """Calls of `module` go through torch.compile from now on. Where hooks of its layers have come or gone, by which adapters are
    stacked, it is compiled once more for that set of them; what is called with them as before is not."""
    module.compile(backend=backend)
    call: Any = module._compiled_call_impl

    def guarded(*inputs: Any, **words: Any) -> Any:
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):  # by default it would not look at them again
            return call(*inputs, **words)

    module._compiled_call_impl = guarded


@contextmanager
def compiled(module: nn.Module, wanted: bool = True) -> Iterator[None]:
    """`compile_calls` inside the block, if `wanted`."""
    before = module._compiled_call_impl
    if wanted:
        compile_calls(module)
    try:
        yield
    finally:
        module._compiled_call_impl = before


@contextmanager
def plain(module: nn.Module) -> Iterator[None]:
    """Inside, a compiled module is called as it stands, with whatever hangs on it at the moment."""
    before = module._compiled_call_impl  # PyTorch has no word for taking Module.compile() back
    module._compiled_call_impl = None
    try:
        yield
    finally:
        module._compiled_call_impl = before


def is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None
