"""The U-Net as a denoiser D(x; σ), with classifier-free guidance."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.conditioning import Conditioning, predict
from sdlora.generation.sampler import Denoise


def denoiser(unet: nn.Module, prediction: str, hint: Conditioning, guidance: Tensor | None, time_ids: Tensor | None = None) -> Denoise:
    """D for a batch of n pictures.  Guidance: Ho & Salimans 2022, arXiv:2207.12598, in the form u + s (c − u).

    hint      of 2n rows, conditional then unconditional; of n without guidance
    guidance  (n, 1, 1, 1) fp32, one s per picture; None skips the unconditional half
    time_ids  (n, 6), SDXL's sizes, the same for both halves
    """
    device, dtype = hint.context.device, hint.context.dtype
    ids = time_ids if time_ids is None or guidance is None else torch.cat([time_ids, time_ids])

    def denoise(x: Tensor, sigma: float, t: float) -> Tensor:
        rows = x if guidance is None else torch.cat([x, x])
        scaled = (rows / (sigma**2 + 1) ** 0.5).to(dtype)
        output = predict(unet, scaled, torch.tensor(t, device=device), hint, ids).float()
        if guidance is not None:
            conditional, unconditional = output.chunk(2)
            output = unconditional + guidance * (conditional - unconditional)
        return clean(prediction, x, output, sigma)

    return denoise


def clean(prediction: str, x: Tensor, output: Tensor, sigma: float) -> Tensor:
    """x₀ from x = x₀ + σ n and what the network said of x / √(σ² + 1): ε = n, or v = (n − σ x₀) / √(σ² + 1) (arXiv:2202.00512)."""
    if prediction == "v_prediction":
        return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5
    return x - sigma * output


@contextmanager
def one_timestep(unet: Any) -> Iterator[None]:
    """Inside, the U-Net embeds the timestep once for the whole batch and broadcasts it, since all rows share it.

    It is what makes a picture independent of its batch bit for bit: on the CPU the products of these few-row matrices were the
    only ones whose rounding depended on the number of rows (by 1e-7; measured with the embedded base and PyTorch 2.13).
    """
    with unet.time_embedding.register_forward_pre_hook(lambda _, inputs: (inputs[0][:1], *inputs[1:])):
        yield
