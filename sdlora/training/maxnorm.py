"""Max-norm regularisation: no layer's ΔW grows beyond a norm.  kohya's scale_weight_norms."""

from collections.abc import Iterable

import torch

from sdlora.apply.inject import Trained


@torch.no_grad()
def hold(carriers: Iterable[Trained], limit: float) -> int:
    """Where ‖ΔW‖ (Frobenius, with α / r) is more than `limit`, A and B are both scaled by √(limit / ‖ΔW‖); how many layers were."""
    scaled = 0
    for trained in carriers:
        norm = trained.kind(**{name: value.detach() for name, value in trained.named_parameters()}, **trained.constants).norm
        if norm > limit:
            scaled += 1
            for parameter in trained.parameters():
                parameter.mul_((limit / norm) ** 0.5)
    return scaled
