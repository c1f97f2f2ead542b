"""What tests of a training's step look at: the numbers that are trained, and those that would be saved."""

from pathlib import Path

import torch

from sdlora import config
from sdlora.training import TrainConfig

FEW = {"include": ("unet.mid",)}  # four attention layers are enough to tell


def small(pictures: Path, output: Path, **changes) -> TrainConfig:
    """Eight steps of two pictures."""
    usual = {"steps": 8, "batch_size": 2, "rank": 2, "resolution": 32, "precision": "fp32", "save_every": 0, "warmup": 1}
    return config.validated(TrainConfig, {"images": str(pictures), "output": str(output)} | usual | changes)


def numbers(run) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.parameters]


def saved(run) -> list[torch.Tensor]:
    return [t for update in run.adapter().layers.values() for t in (update.a, update.b)]


def equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
