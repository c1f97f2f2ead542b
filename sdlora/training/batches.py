"""Batch number k of a training, a pure function of the data, the settings and k."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sdlora.conditioning import time_ids
from sdlora.data.encode import Encoded
from sdlora.loss.timesteps import placed
from sdlora.training import draws, noising
from sdlora.training.config import TrainConfig


@dataclass(frozen=True, eq=False)
class Batch:
    latents: Tensor  # (n, c, h, w)
    noise: Tensor  # (n, c, h, w)
    timesteps: Tensor  # (n,) int64
    captions: tuple[str | None, ...]  # None: dropped
    time_ids: Tensor  # (n, 6) fp32, the sizes that SDXL is told
    weights: Tensor  # (n,) of each sample's loss; they add up to 1 (+ the prior's weight) over an optimiser step
    masks: Tensor | None = None  # (n, 1, h, w) fp32 ≥ 0, of the loss at each place
    extra: Tensor | None = None  # (n, c, h, w): more noise for the input than the target knows of

    def to(self, device: torch.device) -> "Batch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "captions"}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})


@dataclass(frozen=True, eq=False)
class Source:
    """Where samples come from: the image folder, or the base's own pictures."""

    name: str
    data: Encoded
    batch_size: int
    weight: float  # of all its samples in an optimiser step together


def batches(sources: Sequence[Source], config: TrainConfig, step: int, total: int) -> list[Batch]:
    """The `config.accumulate` batches of optimiser step `step` (from 0), with `total` timesteps in the noise schedule."""
    steps_of = [_timesteps(source, config, step, total) for source in sources]
    parts = [
        [_samples(source, config, step, micro, t) for source, t in zip(sources, steps_of, strict=True)]
        for micro in range(config.accumulate)
    ]
    return [_joined(part) for part in parts]


def _timesteps(source: Source, config: TrainConfig, step: int, total: int) -> Tensor:
    count = source.batch_size * config.accumulate
    u = draws.quantiles(count, config.stratified, config.seed, f"timesteps of {source.name}", step)
    own = config.timesteps
    normal = {"mean": own.mean or 0.0, "deviation": own.deviation or 1.0}
    return placed(u, total, own.min, own.max, own.distribution, **normal, shift=own.shift)


def _samples(source: Source, config: TrainConfig, step: int, micro: int, timesteps: Tensor) -> Batch:
    size, seed, data = source.batch_size, config.seed, source.data
    first = (step * config.accumulate + micro) * size  # number of the first sample since the training began
    numbers = range(first, first + size)
    rows = [draws.pick(n, len(data), seed, f"order of {source.name}") for n in numbers]
    views = data.latents.shape[1]
    view = [int(views * draws.uniform(seed, f"flip of {source.name}", n)) if views > 1 else 0 for n in numbers]
    dropped = [config.caption_dropout > 0 and draws.uniform(seed, f"dropout of {source.name}", n) < config.caption_dropout for n in numbers]
    latents = torch.stack([data.latents[row, v] for row, v in zip(rows, view, strict=True)])
    return Batch(
        latents,
        torch.stack([noising.drawn(x, config.noise, seed, source.name, n) for x, n in zip(latents, numbers, strict=True)]),
        timesteps[micro * size : (micro + 1) * size],
        tuple(None if drop else data.captions[row] for row, drop in zip(rows, dropped, strict=True)),
        time_ids([data.sizes[row] for row in rows]),
        torch.full((size,), source.weight / (size * config.accumulate)),
        extra=_extra(latents, source, config, numbers),
    )


def _extra(latents: Tensor, source: Source, config: TrainConfig, numbers: range) -> Tensor | None:
    if not config.noise.input_perturbation:
        return None
    return torch.stack([noising.extra(x, config.noise, config.seed, source.name, n) for x, n in zip(latents, numbers, strict=True)])


def _joined(parts: Sequence[Batch]) -> Batch:
    names = [f.name for f in fields(Batch) if f.name != "captions" and getattr(parts[0], f.name) is not None]
    tensors = {name: torch.cat([getattr(p, name) for p in parts]) for name in names}
    return Batch(**tensors, captions=tuple(caption for part in parts for caption in part.captions))
