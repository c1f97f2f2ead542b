"""Settings that fit a given memory: batch size and accumulation, precision, gradient checkpointing; the effective batch stays.

Of what fits, the fastest: 16 bits cost nothing where the hardware computes with them; a smaller batch, accumulated, makes the same
step; gradient checkpointing takes a third more time, so it comes last, and then with the largest batch that fits. Only where what
surrounds the steps takes too much, and no such choice helps, the VAE encodes in tiles, and at last no samples are drawn.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from sdlora.errors import SdloraError
from sdlora.training import footprint, placement
from sdlora.training.config import Samples, TrainConfig
from sdlora.training.footprint import GIB, Footprint, gib

UNITS = {"": 1, "KB": 2**10, "MB": 2**20, "GB": GIB, "KIB": 2**10, "MIB": 2**20, "GIB": GIB}
RESERVE = {"cuda": 0.8 * GIB, "mps": 0.5 * GIB, "cpu": 0.7 * GIB}  # the device's context, kernels and libraries
SLACK = 1.15  # of the estimate: what allocators lose, and what the estimate misses


@dataclass(frozen=True)
class Fitted:
    config: TrainConfig
    reasons: tuple[str, ...]  # one line each


def parse(text: str) -> int:
    """Bytes of "8GB"; a GB is 2³⁰ bytes, as on the box of a graphics card."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)", text.strip().upper())
    size = float(found[1]) * UNITS[found[2]] if found else 0
    if size <= 0:
        raise SdloraError(f"--fit {text!r} is no size of a memory; write it as 8GB or 12.5GB")
    return int(size)


def fit(config: TrainConfig, size: int, modules: Mapping[str, nn.Module] | None = None) -> Fitted:
    """The first of `candidates` that `size` bytes hold; SdloraError if none does."""
    modules = modules or footprint.networks(config)
    where = placement.device(config.device)
    config = config.model_copy(update={"precision": placement.precision(config.precision, where)})
    room = (size - RESERVE[where.type]) / SLACK
    smallest: Footprint | None = None
    for changed in candidates(config, config.precision):
        found = footprint.estimate(changed, modules)
        if found.total <= room:
            return Fitted(changed, tuple(_reasons(config, changed, found, size, modules)))
        smallest = found if smallest is None or found.total < smallest.total else smallest
    assert smallest is not None
    least = smallest.total * SLACK + RESERVE[where.type]
    phase = f" while {smallest.worst}" if smallest.worst else ""
    raise SdloraError(
        f"nothing fits {gib(size)}: with one picture at a time, 16 bits and gradient checkpointing it still takes about {gib(least)}"
        f"{phase}; take a smaller resolution or rank, or train no text encoder"
    )


def candidates(config: TrainConfig, precision: str) -> Iterator[TrainConfig]:
    """The fastest first: as it is, then 16 bits, then smaller batches, and checkpointing at the end; and all this again with less
    around the steps."""
    for changed in surroundings(config):
        yield from steps(changed, precision)


def surroundings(config: TrainConfig) -> Iterator[TrainConfig]:
    """As it is, then the VAE in tiles, then without samples: none of this takes part in a step."""
    yield config
    tiled = config.model_copy(update={"vae_tiling": True})
    if not config.vae_tiling:
        yield tiled
    if config.samples.count or config.samples.prompts:
        yield config.model_copy(update={"samples": Samples(count=0)})
        if not config.vae_tiling:
            yield tiled.model_copy(update={"samples": Samples(count=0)})


def steps(config: TrainConfig, precision: str) -> Iterator[TrainConfig]:
    """What changes the memory of a step and not the step."""
    precisions = [precision] if precision != "fp32" else ["fp32", "bf16"]
    effective = config.batch_size * config.accumulate
    batches = [n for n in range(config.batch_size, 0, -1) if effective % n == 0]
    for checkpointing in dict.fromkeys((config.gradient_checkpointing, True)):
        for batch in batches:
            for dtype in precisions:
                yield config.model_copy(
                    update={
                        "precision": dtype,
                        "batch_size": batch,
                        "accumulate": effective // batch,
                        "gradient_checkpointing": checkpointing,
                        "prior": _prior(config, batch),
                    }
                )


def _prior(config: TrainConfig, batch: int) -> object:
    """The base's own pictures in each batch shrink with it."""
    if not config.prior.on or not config.prior.batch_size:
        return config.prior
    return config.prior.model_copy(update={"batch_size": max(1, config.prior.batch_size * batch // config.batch_size)})


def _reasons(old: TrainConfig, new: TrainConfig, found: Footprint, size: int, modules: Mapping[str, nn.Module]) -> Iterator[str]:
    before = footprint.estimate(old, modules)
    changed = [
        f"{name} {getattr(old, name)} → {getattr(new, name)}"
        for name in ("precision", "batch_size", "accumulate", "gradient_checkpointing", "vae_tiling")
        if getattr(old, name) != getattr(new, name)
    ]
    if old.samples != new.samples:
        changed.append(f"samples.count {len(old.samples.prompts) or old.samples.count} → 0")
    if not changed:
        yield f"fits {gib(size)} as it is: {_most(found)}"
        return
    yield f"to fit {gib(size)}: {', '.join(changed)}; {_most(found)} instead of {gib(before.total)}"
    if new.batch_size != old.batch_size:
        yield f"  a step still sees {new.samples_per_step} pictures, {new.batch_size} at a time"
    if new.gradient_checkpointing and not old.gradient_checkpointing:
        yield "  gradient checkpointing computes every block a second time: a third more time per step, the same numbers"
    if new.precision != old.precision:
        yield f"  {new.precision} halves weights and activations; what is trained stays in fp32"
    if new.vae_tiling != old.vae_tiling:
        yield "  the VAE encodes in overlapping tiles: the latents of large pictures differ slightly"
    if new.samples != old.samples:
        yield "  no samples are drawn: that brings the VAE and the text encoders back; sdlora generate draws them from the saved files"


def _most(found: Footprint) -> str:
    return f"about {gib(found.total)}" + (f", while {found.worst}" if found.worst else "")
