"""Batch number k of a training, a pure function of the data, the settings and k."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from sdlora.conditioning import time_ids
from sdlora.data.encode import Encoded, Row, View
from sdlora.loss.timesteps import placed
from sdlora.training import draws, noising
from sdlora.training.config import TrainConfig
from sdlora.training.deal import Card, Deck, dealt


@dataclass(frozen=True, eq=False)
class Batch:
    latents: Tensor  # (n, c, h, w)
    noise: Tensor  # (n, c, h, w)
    timesteps: Tensor  # (n,) int64
    captions: tuple[str | None, ...]  # None: dropped
    time_ids: Tensor  # (n, 6) fp32, the sizes that SDXL is told
    weights: Tensor  # (n,) of each sample's loss; they add up to 1 (+ the prior's weight) over an optimiser step
    masks: Tensor | None = None  # (n, 1, h, w) fp32 in [0, 1]: how much the loss counts where; None: everywhere alike
    extra: Tensor | None = None  # (n, c, h, w): more noise for the input than the target knows of

    def to(self, device: torch.device) -> "Batch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


@dataclass(frozen=True, eq=False)
class Source:
    """Where samples come from: the image folder, or the base's own pictures."""

    name: str
    data: Encoded
    batch_size: int
    weight: float  # of all its samples in an optimiser step together

    @cached_property
    def deck(self) -> Deck:
        return Deck([row.shape for row in self.data.rows], [row.repeats for row in self.data.rows])


def batches(sources: Sequence[Source], config: TrainConfig, step: int, total: int) -> list[Batch]:
    """The batches of optimiser step `step` (from 0), with `total` timesteps in the noise schedule: `config.accumulate` of each source,
    those of the same size in one."""
    steps_of = [_timesteps(source, config, step, total) for source in sources]
    parts = [
        [_samples(source, config, step, micro, t) for source, t in zip(sources, steps_of, strict=True)]
        for micro in range(config.accumulate)
    ]
    return [batch for part in parts for batch in _joined(part)]


def _timesteps(source: Source, config: TrainConfig, step: int, total: int) -> Tensor:
    count = source.batch_size * config.accumulate
    u = draws.quantiles(count, config.stratified, config.seed, f"timesteps of {source.name}", step)
    own = config.timesteps
    normal = {"mean": own.mean or 0.0, "deviation": own.deviation or 1.0}
    return placed(u, total, own.min, own.max, own.distribution, **normal, shift=own.shift)


def _samples(source: Source, config: TrainConfig, step: int, micro: int, timesteps: Tensor) -> Batch:
    size, seed = source.batch_size, config.seed
    batch = step * config.accumulate + micro
    numbers = range(batch * size, (batch + 1) * size)  # of the samples since the training began
    cards = dealt(source.deck, batch, size, seed, f"order of {source.name}")
    rows = [source.data.rows[card.row] for card in cards]
    views = [_view(row, card, source, seed) for row, card in zip(rows, cards, strict=True)]
    latents = torch.stack([view.latents for view in views])
    return Batch(
        latents,
        torch.stack([noising.drawn(x, config.noise, seed, source.name, n) for x, n in zip(latents, numbers, strict=True)]),
        timesteps[micro * size : (micro + 1) * size],
        tuple(_caption(row, card, source, config) for row, card in zip(rows, cards, strict=True)),
        time_ids([view.sizes for view in views]),
        torch.tensor([row.weight for row in rows]) * (source.weight / (size * config.accumulate)),
        _masks(views, source, config, numbers),
        _extra(latents, source, config, numbers),
    )


def _view(row: Row, card: Card, source: Source, seed: int) -> View:
    """By what a picture's showing is: neither the batch nor its neighbours have a part in it."""
    crop = row.views[card.showing % row.turns]
    return crop[int(len(crop) * draws.uniform(seed, f"flip of {source.name}", row.key, card.showing))] if len(crop) > 1 else crop[0]


def _caption(row: Row, card: Card, source: Source, config: TrainConfig) -> str | None:
    if config.caption_dropout and draws.uniform(config.seed, f"dropout of {source.name}", row.key, card.showing) < config.caption_dropout:
        return None
    return row.wordings[card.showing % len(row.wordings)]


def _masks(views: Sequence[View], source: Source, config: TrainConfig, numbers: range) -> Tensor | None:
    if all(view.mask is None for view in views):
        return None
    masks = torch.stack([torch.ones_like(view.latents[:1]) if view.mask is None else view.mask for view in views])
    return noising.weights(masks, config.loss, config.seed, source.name, numbers)


def _extra(latents: Tensor, source: Source, config: TrainConfig, numbers: range) -> Tensor | None:
    if not config.noise.input_perturbation:
        return None
    return torch.stack([noising.extra(x, config.noise, config.seed, source.name, n) for x, n in zip(latents, numbers, strict=True)])


def _joined(parts: Sequence[Batch]) -> list[Batch]:
    """Those of the same size as one."""
    shapes = list(dict.fromkeys(part.latents.shape[1:] for part in parts))
    return [_cat([part for part in parts if part.latents.shape[1:] == shape]) for shape in shapes]


def _cat(parts: Sequence[Batch]) -> Batch:
    if any(part.masks is not None for part in parts):
        parts = [replace(part, masks=torch.ones_like(part.latents[:, :1])) if part.masks is None else part for part in parts]
    names = [f.name for f in fields(Batch) if isinstance(getattr(parts[0], f.name), Tensor)]
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Batch(**tensors, captions=tuple(caption for part in parts for caption in part.captions))
