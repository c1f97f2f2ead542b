"""Muon: momentum whose update is made orthogonal by Newton–Schulz. Jordan et al. 2024, kellerjordan.github.io/posts/muon."""

from collections import defaultdict

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """(n, rows, columns) -> about U Vᵀ of each matrix's singular value decomposition.

    The iteration X ← (aI + bG + cG²) X with G = X Xᵀ is run on G and on the product of its factors alone, which
    are as small as the shorter side; X itself is multiplied once at the end.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram = x @ x.mT
    eye = torch.eye(gram.shape[-1])
    product = eye
    for _ in range(iterations):
        factor = a * eye + b * gram + c * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor
    result = product @ x
    return result.mT if tall else result


class Muon(torch.optim.Optimizer):
    """For weights of two dimensions and more (convolutions flattened to out × rest); no biases, no embeddings."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape[0], p[0].numel()].append(p)
            for (rows, columns), same in shapes.items():
                stacked = torch.stack([self.momentum(p, group["momentum"]).reshape(rows, columns) for p in same])
                scale = group["lr"] * max(1, rows / columns) ** 0.5
                for p, update in zip(same, orthogonal(stacked)):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.reshape(p.shape), alpha=scale)

    def momentum(self, p: nn.Parameter, beta: float) -> Tensor:
        buffer = self.state[p].setdefault("momentum", torch.zeros_like(p.grad))
        buffer.lerp_(p.grad, 1 - beta)
        return p.grad.lerp(buffer, beta)


def optimizers(module: nn.Module, muon_lr: float, adam_lr: float, weight_decay: float = 0.01) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network; AdamW for embeddings, biases, norms, first and last layers."""
    outer = ("embedding", "conv_in", "conv_out", "quant_conv")
    inner = {n: p for n, p in module.named_parameters() if p.ndim >= 2 and not any(word in n for word in outer)}
    rest = [p for n, p in module.named_parameters() if n not in inner]
    return [
        Muon(list(inner.values()), muon_lr, weight_decay=weight_decay),
        torch.optim.AdamW(rest, adam_lr, betas=(0.9, 0.99), weight_decay=0.0),
    ]
