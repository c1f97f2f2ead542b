"""Three real steps of a training, for their speed and memory, which leave nothing behind."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sdlora import apply, hardware, models
from sdlora.data import Cache, Example
from sdlora.training import placement, planning, processes, session, sharding, sources
from sdlora.training.batches import Source
from sdlora.training.config import TrainConfig
from sdlora.training.footprint import gib
from sdlora.training.loop import steps

STEPS = 3


@dataclass(frozen=True)
class Measured:
    seconds: tuple[float, ...]  # of each step; the first one warms up
    encoding: float  # seconds for one picture
    peak: int | None  # bytes: of the device's allocator on CUDA, else of the process; None where the system does not tell

    @property
    def per_step(self) -> float:
        return min(self.seconds[1:])


def measure(config: TrainConfig, components: models.Components | None = None) -> Measured:
    """Loads the base, encodes as many pictures as a step takes, in memory, and makes three steps with them; several processes make
    them together, each with its share of the base where that is split."""
    world, config = processes.world(), config.settled()
    found, _ = planning.checked(config)
    alone = components is None
    components = components or session.loaded(config)
    config = session.fitted(config, components)
    wide = processes.widened(config, world)
    needed = found.images[: wide.samples_per_step]
    with placement.prepared(components, config), placement.deterministic(components.device):
        working = components
        try:
            start, cache = time.perf_counter(), Cache()
            made = _sources(needed, components, wide, cache)
            encoding = (time.perf_counter() - start) / len(needed)
            working = sharding.split(components, config, world.sharding, world.device, world.size)
            run = session._run(config, working, made, cache, {"base model": "", "images": ""}, world, originals=components)
            run.idle = [*run.idle, *sharding.whole(components, working)]
            if components.device.type == "cuda":
                hardware.forget_peak(components.device)
            with session.idle_parts(run, gone=alone), placement.checkpointing(working, config):
                with hardware.compiled(working.unet, config.compile):
                    seconds = tuple(step.seconds for step in steps(run, min(STEPS, config.steps)))
            return Measured(seconds if len(seconds) > 1 else seconds * 2, encoding, hardware.peak(components.device))
        finally:
            apply.eject(working.modules)


def _sources(examples: Sequence[Example], components: models.Components, config: TrainConfig, cache: Cache) -> list[Source]:
    """The prior's pictures, which are not drawn for this, are stood in for by the images."""
    images = sources.source("images", examples, components, config, cache, config.batch_size, 1.0, lambda line: None)
    stand_in = Source("prior", images.data, config.priors_per_batch, config.prior.weight)
    return [images, stand_in] if config.prior.on else [images]


def lines(found: Measured, config: TrainConfig) -> list[str]:
    """In words."""
    total = found.per_step * config.steps
    rows = [("speed", f"{found.per_step:.2f} s per step, so {_time(total)} for {config.steps}; {found.encoding:.2f} s to encode a picture")]
    if found.peak:
        rows.append(("peak", f"{gib(found.peak)} measured, libraries included" if not torch.cuda.is_available() else gib(found.peak)))
    return [f"{name:8} {text}" for name, text in rows]


def _time(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
