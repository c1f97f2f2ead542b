"""The training loop: a generator of steps. Who consumes it decides when to log, draw, save and stop."""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdlora import apply
from sdlora.conditioning import predict
from sdlora.errors import SdloraError
from sdlora.hardware import PRECISIONS
from sdlora.loss import Objective, noised, target
from sdlora.training import draws, maxnorm, optimizers
from sdlora.training.batches import Batch, batches
from sdlora.training.config import TrainConfig
from sdlora.training.run import Run


@dataclass(frozen=True)
class Step:
    number: int  # from 1
    loss: float  # weighted as it is optimised, before the step
    grad_norm: float  # of all parameters together, before clipping
    learning_rate: float  # of the first group; of an optimizer that finds it, as it was found
    seconds: float


def steps(run: Run, until: int | None = None) -> Iterator[Step]:
    """Train `run` up to optimiser step `until` (default: config.steps). Between two steps the run may be saved or left.

    SdloraError, with the run as it was before the step, if loss or gradient is not a number, or the loss explodes.
    """
    until = run.config.steps if until is None else until
    while run.step < until:
        start = time.perf_counter()
        rate = run.set_rate()
        loss = 0.0
        for micro, batch in enumerate(batches(run.sources, run.config, run.step, len(run.components.alphas_bar))):
            own = run.world.share(batch)
            if own is None:
                continue
            with dropout(run, micro * run.world.size + run.world.rank):
                part = batch_loss(run, own.to(run.components.device))
                run.scaler.scale(part).backward()
            loss += part.item()
        loss = run.world.summed(run.parameters, loss)
        run.scaler.unscale_(run.optimizer)
        norm = nn.utils.clip_grad_norm_(run.parameters, run.config.clip or math.inf).item()
        if not (math.isfinite(loss) and (math.isfinite(norm) or overflow(run))):
            run.optimizer.zero_grad(set_to_none=True)
            raise SdloraError(diagnosis(run, loss, norm))
        alarm = run.guard.alarmed(loss)
        if alarm:
            run.optimizer.zero_grad(set_to_none=True)
            raise SdloraError(f"{alarm}, in step {run.step + 1} of {run.config.steps}; {advice(run.config)}, or explosion=0 to go on")
        run.scaler.step(run.optimizer)  # in fp16 it leaves out a step whose gradient overflowed
        run.scaler.update()
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        if run.config.max_norm:
            maxnorm.hold(run.carriers.values(), run.config.max_norm)
        if run.average:
            run.average.update(run.parameters, run.step)
        yield Step(run.step, loss, norm, rate * optimizers.found_rate(run.optimizer), time.perf_counter() - start)


def batch_loss(run: Run, batch: Batch) -> Tensor:
    """The batch's part of the loss, a scalar in fp32."""
    components = run.components
    bar = components.alphas_bar.to(batch.latents.device)[batch.timesteps]
    noise = batch.noise if batch.extra is None else batch.noise + batch.extra
    noisy = noised(batch.latents, noise, bar).to(components.dtype)
    with precision(run):
        hint = run.prompts(batch.captions).to(dtype=components.dtype)
        predicted = predict(components.unet, noisy, batch.timesteps, hint, batch.time_ids)
    wanted = target(batch.latents, batch.noise, bar, components.prediction)
    share = batch.timesteps / len(components.alphas_bar)
    losses = objective(run.config).loss(predicted, wanted, bar, share, components.prediction, batch.masks)
    return (batch.weights * losses).sum()


def objective(config: TrainConfig) -> Objective:
    """The loss that the settings ask for."""
    own = config.loss
    return Objective(
        kind=own.kind,
        c=own.huber_c or 0.1,
        c_schedule=own.huber_schedule or "snr",
        c_scale=own.huber_scale or 1.0,
        weighting=own.weighting or "min_snr",
        gamma=config.min_snr,
        p2=(1.0 if own.p2_k is None else own.p2_k, 1.0 if own.p2_gamma is None else own.p2_gamma),
        snr_range=own.snr_range or (0.1, 5.0),
    )


def dropout(run: Run, micro: int) -> AbstractContextManager[None]:
    """The updates drop out, if they are to: forward and backward pass of batch `micro` of the coming step belong inside."""
    chances, seed, step = run.config.dropout, run.config.seed, run.step
    if not chances.on:
        return nullcontext()

    def source(layer: str, purpose: str, where: torch.device) -> torch.Generator:
        number = draws.generator(seed, f"dropout of {purpose} in {layer}", step, micro).initial_seed()
        return torch.Generator(where).manual_seed(number)

    return apply.dropping(run.carriers, chances.network, chances.rank, chances.module, source)


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
    rate = f"learning_rate {config.learning_rate:g}, clip {config.clip:g}"
    return f"{what} in step {run.step + 1} of {config.steps} ({rate}); {advice(config)}"


def advice(config: TrainConfig) -> str:
    return "try a smaller learning_rate" + (", or precision=fp32" if config.precision != "fp32" else "")
