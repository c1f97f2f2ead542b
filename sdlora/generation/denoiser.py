"""The U-Net as a denoiser D(x; σ), with classifier-free guidance and any number of conditions per picture."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.conditioning import predict
from sdlora.generation.conditions import Conditions, composed
from sdlora.generation.sampler import Denoise


def denoiser(unet: nn.Module, prediction: str, now: Callable[[], Conditions], guidance: Tensor, time_ids: Tensor | None = None) -> Denoise:
    """D for a batch of n pictures.

    now       what holds at the current step; without unconditional rows each picture has one condition, and guidance no effect
    guidance  (n, 1, 1, 1) fp32, one s per picture
    time_ids  (n, 6), SDXL's sizes
    """

    def denoise(x: Tensor, sigma: float, t: float) -> Tensor:
        conditions = now()
        m = len(conditions.rows)
        scaled = x / (sigma**2 + 1) ** 0.5
        output = _predicted(unet, scaled, t, conditions, time_ids)
        if conditions.unconditional:
            output = composed(output[:m], output[m:], conditions.owners, conditions.weights, guidance)
        return clean(prediction, x, output, sigma)

    return denoise


def _predicted(unet: nn.Module, scaled: Tensor, t: float, conditions: Conditions, time_ids: Tensor | None) -> Tensor:
    """What the U-Net says of scaled[owners] for the rows of `conditions`, the unconditional ones last, in fp32."""
    owners = [*conditions.owners, *range(len(conditions.unconditional))]
    result = torch.empty((len(owners), *scaled.shape[1:]), device=scaled.device)
    for rows, hint in conditions.calls:
        of = [owners[row] for row in rows]
        conditions.face(of)
        inputs, timestep = scaled[of].to(hint.context.dtype), torch.tensor(t, device=scaled.device)
        result[rows] = predict(unet, inputs, timestep, hint, None if time_ids is None else time_ids[of]).float()
    return result


def clean(prediction: str, x: Tensor, output: Tensor, sigma: float) -> Tensor:
    """x₀ from x = x₀ + σ n and what the network said of x / √(σ² + 1): ε = n, or v = (n − σ x₀) / √(σ² + 1) (arXiv:2202.00512)."""
    if prediction == "v_prediction":
        return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1) ** 0.5
    return x - sigma * output


def keeping(denoise: Denoise, redrawn: Tensor, original: Tensor, steps: int, begun: Callable[[], int]) -> Denoise:
    """D that knows x₀ already where `redrawn` (n, 1, h, w) is 0: there it is `original` (n, 4, h, w).

    From original + σ n every sampler then stays upon the noised original there, and ends on `original`. It is what AUTOMATIC1111
    does (modules/sd_samplers_cfg_denoiser.py), and with a step of Euler what RePaint does without its repeats (arXiv:2201.09865).
    Between 0 and 1 a place is let go for the last steps alone, its share of them: Levin & Fried 2023, arXiv:2306.00950.

    steps  of the pass
    begun  how many of them have begun: 1 in the first step, whatever σ the sampler asks for in it (Heun asks for the next step's too,
           and s_churn for a higher one)
    """
    return lambda x, sigma, t: torch.where(redrawn > 1 - begun() / steps, denoise(x, sigma, t), original)


@contextmanager
def one_timestep(unet: Any) -> Iterator[None]:
    """Inside, the U-Net embeds the timestep once for the whole batch and broadcasts it, since all rows share it.

    It is what makes a picture independent of its batch bit for bit: on the CPU the products of these few-row matrices were the
    only ones whose rounding depended on the number of rows (by 1e-7; measured with the embedded base and PyTorch 2.13).
    """
    with unet.time_embedding.register_forward_pre_hook(lambda _, inputs: (inputs[0][:1], *inputs[1:])):
        yield
