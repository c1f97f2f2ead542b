"""Settings of a training that contradict each other or would have no effect, each with the reason."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sdlora.errors import nearest
from sdlora.training import optimizers

if TYPE_CHECKING:
    from sdlora.training.config import TrainConfig

SETTINGS_OF = {  # setting -> (where it belongs, the schedules or kinds that know it)
    "schedule_cycles": ("schedule", ("cosine_restarts",)),
    "schedule_power": ("schedule", ("polynomial",)),
    "schedule_decay": ("schedule", ("wsd",)),
    "schedule_floor": ("schedule", ("cosine", "cosine_restarts", "linear", "polynomial", "wsd", "rex")),
}


def first(config: "TrainConfig") -> str | None:
    """The first thing that is wrong with `config`, in words; None if all is well."""
    return next((problem for check in CHECKS for problem in check(config)), None)


def optimizer(c: "TrainConfig") -> Iterator[str]:
    own, kind = c.optimizer, optimizers.KINDS[c.optimizer.name]
    for argument in own.arguments:
        if argument not in kind.arguments:
            yield f"optimizer.{argument} is no argument of {own.name}{nearest(argument, kind.arguments)}"
    if isinstance(own.eps, tuple) != (own.name == "adafactor") and own.eps is not None:
        yield f"optimizer.eps is {own.eps}; {own.name} has {'two, such as [1e-30, 1e-3]' if own.name == 'adafactor' else 'one number'}"
    if own.betas is not None and not all(0 <= beta < 1 for beta in own.betas):
        yield f"optimizer.betas is {list(own.betas)}; both have to be at least 0 and less than 1"
    if not optimizers.installed(own.name):
        yield optimizers.missing(own.name)


def found_rates(c: "TrainConfig") -> Iterator[str]:
    name = c.optimizer.name
    if not optimizers.KINDS[name].finds_rate:
        return
    rate = c.learning_rate or 1.0
    if not 0.1 <= rate <= 10:
        yield (
            f"learning_rate is {rate:g}, and {name} finds the rate itself: learning_rate is a factor on what it finds; "
            "leave it out (1), or tune optimizer.d0" + (" and d_coef" if name == "prodigy" else "")
        )
    others = [part.learning_rate for part in (c.unet, c.text_encoder, c.text_encoder_2)] + [c.text_learning_rate]
    if any(other not in (None, rate) for other in others) or c.rates or c.lora_plus != 1:
        yield f"{name} has one learning rate for all layers; leave out rates of parts and blocks, text_learning_rate and lora_plus"


def averages(c: "TrainConfig") -> Iterator[str]:
    if not optimizers.KINDS[c.optimizer.name].averages:
        return
    if "schedule" in c.model_fields_set and c.schedule != "constant":
        yield f"{c.optimizer.name} needs no schedule, and {c.schedule} would spoil its average; leave schedule out (a warm-up is fine)"
    for name in SETTINGS_OF:
        if getattr(c, name) is not None:
            yield f"{name} has no effect with {c.optimizer.name}, which needs no schedule; leave it out"
    if c.optimizer.betas is not None and c.optimizer.betas[0] == 0:
        yield f"optimizer.betas is {list(c.optimizer.betas)}; {c.optimizer.name} divides by the first, so it has to be more than 0"
    if c.ema.on:
        yield f"{c.optimizer.name} averages the adapter already; leave ema.decay out"
    if c.max_norm:
        yield f"max_norm cannot reach into the average that {c.optimizer.name} keeps; use weight_decay"


def schedule(c: "TrainConfig") -> Iterator[str]:
    for name, (where, valid) in SETTINGS_OF.items():
        if getattr(c, name) is not None and getattr(c, where) not in valid:
            yield f"{name} has no effect with {where}={getattr(c, where)}; it belongs to {', '.join(valid)}"


def loss(c: "TrainConfig") -> Iterator[str]:
    own = c.loss
    if own.kind not in ("huber", "smooth_l1"):
        for name in ("huber_c", "huber_schedule", "huber_scale"):
            if getattr(own, name) is not None:
                yield f"loss.{name} has no effect with loss.kind={own.kind}; it belongs to huber and smooth_l1"
    elif own.huber_scale is not None and own.huber_schedule in (None, "snr"):
        yield "loss.huber_scale has no effect with loss.huber_schedule=snr, which goes from 1 to huber_c; use exponential or constant"
    if own.weighting not in (None, "min_snr") and "min_snr" in c.model_fields_set and c.min_snr:
        yield f"min_snr={c.min_snr:g} and loss.weighting={own.weighting} are two weightings; choose one"
    for name, weighting in {"p2_k": "p2", "p2_gamma": "p2", "snr_range": "snr_range"}.items():
        if getattr(own, name) is not None and own.weighting != weighting:
            yield f"loss.{name} has no effect without loss.weighting={weighting}"
    if own.snr_range is not None and not 0 <= own.snr_range[0] < own.snr_range[1]:
        yield f"loss.snr_range is {list(own.snr_range)}; it should be two numbers that rise, none below 0"
    for name in ("unmasked_weight", "unmasked_probability"):
        if getattr(own, name) and c.masks == "off":
            yield f"loss.{name} has no effect with masks=off; it belongs to masks=alpha and masks=files"
    if own.p2_k == 0 and own.p2_gamma != 0:
        yield "loss.p2_k is 0: the weight of pure noise would be infinite; take 1"


def noise(c: "TrainConfig") -> Iterator[str]:
    own = c.noise
    if own.pyramid_levels and (own.offset or own.offset_adaptive):
        yield "noise.offset and noise.pyramid_levels both change the noise's low frequencies; choose one"
    if own.pyramid_discount is not None and not own.pyramid_levels:
        yield "noise.pyramid_discount has no effect without noise.pyramid_levels"
    if own.zero_snr and c.prediction == "epsilon":
        yield "noise.zero_snr needs a base that predicts v: of pure noise, ε says nothing about the picture"


def timesteps(c: "TrainConfig") -> Iterator[str]:
    own = c.timesteps
    if own.max is not None and own.min >= own.max:
        yield f"timesteps.min is {own.min} and timesteps.max {own.max}: no timestep is left"
    for name in ("mean", "deviation"):
        if getattr(own, name) is not None and own.distribution != "logit_normal":
            yield f"timesteps.{name} has no effect with timesteps.distribution={own.distribution}; it belongs to logit_normal"


def layers(c: "TrainConfig") -> Iterator[str]:
    for pattern, rank in c.ranks.items():
        if rank < 0:
            yield f"ranks: {pattern!r} is {rank}; a rank is at least 1, and 0 leaves the layers out"
    for table in ("alphas", "rates"):
        for pattern, value in getattr(c, table).items():
            if value <= 0:
                yield f"{table}: {pattern!r} is {value:g}; it has to be more than 0 (ranks: 0 leaves layers out)"


def others(c: "TrainConfig") -> Iterator[str]:
    if c.dropout.on and c.compile:
        yield "dropout cannot be compiled: its draws depend on the step; leave out compile or dropout"
    if 0 < c.explosion <= 1:
        yield f"explosion is {c.explosion:g}; it is how many times its median a loss may grow, so more than 1, or 0 to never stop"


Check = Callable[["TrainConfig"], Iterator[str]]
CHECKS: tuple[Check, ...] = (optimizer, found_rates, averages, schedule, loss, noise, timesteps, layers, others)
