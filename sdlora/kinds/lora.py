"""LoRA: W' = W + η (α / r) B A.  Hu et al. 2021, arXiv:2106.09685, eq. 3."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdlora.layers import down, pair, up


@dataclass(frozen=True, eq=False)
class Lora:
    a: Tensor  # (r, in) or (r, in, kh, kw)
    b: Tensor  # (out, r) or (out, r, 1, 1)
    alpha: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.b.shape[0], *self.a.shape[1:])

    @property
    def norm(self) -> float:
        """‖ΔW‖, Frobenius: s √Σ (BᵀB ∘ AAᵀ), in fp64 from two r × r matrices, without ΔW."""
        a, b = self.a.flatten(1).double(), self.b.flatten(1).double()
        return abs(self.scale) * float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt())

    def delta(self, weight: Tensor) -> Tensor:
        """(α / r) B A, shaped like `weight`; in fp32 even where A and B are half precision."""
        dtype = torch.promote_types(self.a.dtype, torch.float32)
        product = self.b.flatten(1).to(dtype) @ self.a.flatten(1).to(dtype)
        return (self.scale * product).reshape(weight.shape)

    def residual(self, x: Tensor, layer: nn.Module) -> Tensor:
        """(α / r) B (A x): two thin products instead of ΔW."""
        return pair(layer, x, self.a, self.b, self.scale)

    def gated(self, x: Tensor, layer: nn.Module, gate: Callable[[Tensor], Tensor]) -> Tensor:
        """(α / r) B gate(A x): the residual with dropout."""
        return up(layer, gate(down(layer, x, self.a)) * self.scale, self.b)


def fresh(layer: nn.Module, rank: int, alpha: float, generator: torch.Generator | None = None) -> Lora:
    """An update that changes nothing yet: A Gaussian, B zero (sec. 4.1), both fp32 on the layer's device.

    A's standard deviation is 1/r, as in PEFT's `init_lora_weights="gaussian"`, the start of diffusers' trainers; the paper
    gives none. A is drawn on the generator's device (the CPU without one), so that a seed means the same on every machine.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    out, *rest = weight.shape
    device = generator.device if generator is not None else torch.device("cpu")
    a = torch.randn((rank, *rest), generator=generator, device=device, dtype=torch.float32) / rank
    b = torch.zeros((out, rank, *(1 for _ in rest[1:])), dtype=torch.float32)
    return Lora(a.to(weight.device), b.to(weight.device), float(alpha))
