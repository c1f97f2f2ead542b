"""The training loop: a generator of steps. Who consumes it decides when to log, draw, save and stop."""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdlora.conditioning import predict
from sdlora.errors import SdloraError
from sdlora.hardware import PRECISIONS
from sdlora.loss import denoising_loss, noised, target
from sdlora.training.batches import Batch, batches
from sdlora.training.run import Run


@dataclass(frozen=True)
class Step:
    number: int  # from 1
    loss: float  # weighted as it is optimised, before the step
    grad_norm: float  # of all parameters together, before clipping
    learning_rate: float
    seconds: float


def steps(run: Run, until: int | None = None) -> Iterator[Step]:
    """Train `run` up to optimiser step `until` (default: config.steps). Between two steps the run may be saved or left.

    SdloraError, with the run as it was before the step, if loss or gradient is not a number.
    """
    until = run.config.steps if until is None else until
    while run.step < until:
        start = time.perf_counter()
        rate = run.set_rate()
        loss = 0.0
        for batch in batches(run.sources, run.config, run.step, len(run.components.alphas_bar)):
            own = run.world.share(batch)
            if own is not None:
                part = batch_loss(run, own.to(run.components.device))
                run.scaler.scale(part).backward()
                loss += part.item()
        loss = run.world.summed(run.parameters, loss)
        run.scaler.unscale_(run.optimizer)
        norm = nn.utils.clip_grad_norm_(run.parameters, run.config.clip or math.inf).item()
        if not (math.isfinite(loss) and (math.isfinite(norm) or overflow(run))):
            run.optimizer.zero_grad(set_to_none=True)
            raise SdloraError(diagnosis(run, loss, norm))
        run.scaler.step(run.optimizer)  # in fp16 it leaves out a step whose gradient overflowed
        run.scaler.update()
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        yield Step(run.step, loss, norm, rate, time.perf_counter() - start)


def batch_loss(run: Run, batch: Batch) -> Tensor:
    """The batch's part of the loss, a scalar in fp32."""
    components = run.components
    bar = components.alphas_bar.to(batch.latents.device)[batch.timesteps]
    noisy = noised(batch.latents, batch.noise, bar).to(components.dtype)
    with precision(run):
        hint = run.prompts(batch.captions).to(dtype=components.dtype)
        predicted = predict(components.unet, noisy, batch.timesteps, hint, batch.time_ids)
    wanted = target(batch.latents, batch.noise, bar, components.prediction)
    return (batch.weights * denoising_loss(predicted, wanted, bar, run.config.min_snr, components.prediction)).sum()


def precision(run: Run) -> AbstractContextManager[object]:
    """Products in bf16 or fp16 where the settings say so; the loss is computed outside, in fp32."""
    if run.config.precision == "fp32":
        return nullcontext()
    return torch.autocast(run.components.device.type, PRECISIONS[run.config.precision])


def overflow(run: Run) -> bool:
    """Whether a gradient that is not a number is the loss scale's doing: then the scale falls, and the training goes on."""
    return run.scaler.is_enabled() and run.scaler.get_scale() > 1


def diagnosis(run: Run, loss: float, norm: float) -> str:
    config = run.config
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
    advice = "try a smaller learning_rate" + (", or precision=fp32" if config.precision != "fp32" else "")
    return f"{what} in step {run.step + 1} of {config.steps} (learning_rate {config.learning_rate:g}, clip {config.clip:g}); {advice}"
