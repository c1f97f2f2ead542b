"""The noise of a sample as the settings want it, and what its mask weighs: pure functions of (seed, purpose, number of the sample)."""

import torch
from torch import Tensor

from sdlora.loss import noise as shapes
from sdlora.training import draws
from sdlora.training.tables import Loss, Noise

DISCOUNT = 0.4


def drawn(latents: Tensor, settings: Noise, seed: int, source: str, number: int) -> Tensor:
    """The noise of sample `number` of `source`, whose latents are (c, h, w): what is added, and what ε stands for."""
    noise = draws.normal(tuple(latents.shape), seed, f"noise of {source}", number)
    if settings.white:
        return noise
    if settings.pyramid_levels:
        return _pyramid(noise, settings, seed, source, number)
    shift = draws.normal((latents.shape[0], 1, 1), seed, f"noise offset of {source}", number)
    return shapes.offset(noise, shift, settings.offset, latents, settings.offset_adaptive)


def _pyramid(noise: Tensor, settings: Noise, seed: int, source: str, number: int) -> Tensor:
    chance = [draws.uniform(seed, f"noise ratios of {source}", number, i) for i in range(settings.pyramid_levels)]
    sizes = shapes.sides(noise.shape[1], noise.shape[2], [2 + 2 * u for u in chance])
    levels = [draws.normal((noise.shape[0], *size), seed, f"noise levels of {source}", number, i) for i, size in enumerate(sizes)]
    return shapes.pyramid(noise, levels, DISCOUNT if settings.pyramid_discount is None else settings.pyramid_discount)


def extra(latents: Tensor, settings: Noise, seed: int, source: str, number: int) -> Tensor:
    """γ ξ: what the noise of the input has more than the target's.  Ning et al. 2023, arXiv:2301.11706."""
    return settings.input_perturbation * draws.normal(tuple(latents.shape), seed, f"noise perturbation of {source}", number)


def weights(masks: Tensor, settings: Loss, seed: int, source: str, numbers: range) -> Tensor:
    """Masks (n, 1, h, w) in [0, 1] as the weights of the loss: what is left out weighs `unmasked_weight`, and by chance all weighs 1."""
    floor = settings.unmasked_weight
    result = floor + (1 - floor) * masks
    if settings.unmasked_probability:
        chance = [draws.uniform(seed, f"unmasking of {source}", n) for n in numbers]
        result = torch.where(torch.tensor(chance).view(-1, 1, 1, 1) < settings.unmasked_probability, 1.0, result)
    return result
