"""The figures of docs/memory.md that follow from shapes alone: weights, activations of the VAE, and what a training step takes.

    python train/memory.py        # Markdown tables; a few minutes on one core, no weights and hardly any memory

Networks of the true architecture run on fake tensors (PyTorch's FakeTensorMode), which have shapes and no numbers, while the
bytes of all storages alive are added up. What a device's kernels and allocator take beside their tensors is not in it.
"""

import weakref
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

import full_size
from sdlora import apply, conditioning, hardware
from sdlora.conditioning import Conditioning
from sdlora.families import FAMILIES
from sdlora.loss import squared_error

GIB = 2**30
NAMES = {"sd1": "SD 1.5", "sdxl": "SDXL"}


def parts(kind: str) -> dict[str, int]:
    """Part -> parameters."""
    with torch.device("meta"):
        classes = {"unet": "UNet2DConditionModel", **dict(FAMILIES[kind].text_encoders), "vae": "AutoencoderKL"}
        networks = {part: full_size.built(name, full_size.configuration(kind, part))[1] for part, name in classes.items()}
    return {part: sum(p.numel() for p in network.parameters()) for part, network in networks.items()}


class Alive(TorchDispatchMode):
    """Counts the bytes of the storages that appear while it is on, for as long as each is referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.known, self.now, self.most = WeakIdKeyDictionary(), 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = [tensor.untyped_storage() for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)]
        for storage in before:  # weights and inputs, and what is known already
            self.known.setdefault(storage, 0)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.known:
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.known[storage] = size
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.lose, size)

    def lose(self, size: int) -> None:
        self.now -= size


def peak(work: Callable[[], Any]) -> float:
    """GiB that `work` itself makes, at the worst moment."""
    with Alive() as alive:
        work()
    return alive.most / GIB


def decoding(size: int, dtype: torch.dtype, tiling: bool) -> float:
    """Activations of decoding one picture of `size` pixels."""
    torch.set_default_dtype(dtype)
    _, vae = full_size.built("AutoencoderKL", full_size.configuration("sd1", "vae"))
    hardware.set_tiling(vae, tiling)
    latents = torch.zeros(1, 4, size // 8, size // 8)
    with torch.no_grad():
        return peak(lambda: vae.decode(latents).sample)


def step_of(kind: str, size: int, checkpointing: bool) -> Callable[[], None]:
    """One training step without the optimiser's: one picture of `size` pixels, adapter on the attention, rank 8, in bf16."""
    torch.set_default_dtype(torch.bfloat16)
    config = full_size.configuration(kind, "unet")
    _, unet = full_size.built("UNet2DConditionModel", config)
    unet.eval()
    modules = {"unet": unet}
    with patch.object(torch.nn.Module, "to", lambda module, *where: module):  # fake tensors refuse it, and are where they should be
        apply.inject(modules, apply.select(modules), 8, 8.0)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    pooled = torch.zeros(1, 1280) if kind == "sdxl" else None
    hint = Conditioning(torch.zeros(1, 77, config["cross_attention_dim"]), pooled)
    x, t, ids = torch.zeros(1, 4, size // 8, size // 8), torch.zeros(1, dtype=torch.long), torch.zeros(1, 6, dtype=torch.float32)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            said = conditioning.predict(unet, x, t, hint, ids)
        squared_error(said, torch.zeros_like(said)).mean().backward()

    return step


def arithmetic(step: Callable[[], None]) -> float:
    """TFLOP."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e12


def row(*cells: object) -> None:
    print("| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |", flush=True)


def main() -> None:
    row("GiB of weights", "U-Net", "text encoders", "VAE", "together, fp32", "together, bf16 or fp16", "largest part, bf16")
    for kind, name in NAMES.items():
        own = parts(kind)
        texts = sum(count for part, count in own.items() if part.startswith("text"))
        whole = sum(own.values())
        shares = (f"{own['unet']:,}", f"{texts:,}", f"{own['vae']:,}")
        row(name, *shares, whole * 4 / GIB, whole * 2 / GIB, max(own.values()) * 2 / GIB)
    with FakeTensorMode(allow_non_fake_inputs=True):
        row("GiB for decoding", "fp32", "fp32, tiled", "bf16", "bf16, tiled")
        for size in (512, 1024, 2048):
            row(f"{size}²", *(decoding(size, dtype, tiling) for dtype in (torch.float32, torch.bfloat16) for tiling in (False, True)))
        row("a training step", "GiB, plain", "GiB, with gradient checkpointing", "TFLOP, plain", "TFLOP, with gradient checkpointing")
        for kind, size in (("sd1", 512), ("sdxl", 512), ("sdxl", 1024)):
            cells = (count(step_of(kind, size, on)) for count in (peak, arithmetic) for on in (False, True))
            row(f"{NAMES[kind]}, {size}²", *cells)


if __name__ == "__main__":
    main()
