"""Trainings for the tests: a small one's settings, what ends one, and what is compared: trained numbers, saved ones, files."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sdlora import config, training
from sdlora.training import TrainConfig, metrics

FEW = {"include": ("unet.mid",)}  # four attention layers are enough to tell


def small(pictures: Path, output: Path, /, **changes) -> TrainConfig:
    """Eight steps of two pictures."""
    usual = {"steps": 8, "batch_size": 2, "rank": 2, "resolution": 32, "precision": "fp32", "save_every": 0, "warmup": 1}
    return config.validated(TrainConfig, {"images": str(pictures), "output": str(output)} | usual | changes)


def numbers(run) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.parameters]


def saved(run) -> list[torch.Tensor]:
    return [t for update in run.adapter().layers.values() for t in (update.a, update.b)]


def equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Crash(Exception):
    pass


@contextmanager
def crashing(*steps: int) -> Iterator[None]:
    """A training inside crashes once the first of the steps is written, the next training after the second, and so on."""
    left, real = list(steps), metrics.append

    def append(path: Path, step) -> None:
        real(path, step)
        if left and step.number == left[0]:
            del left[0]
            raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "append", append)
        yield


def resumable(pictures: Path, folder: Path, components) -> Callable[..., Path]:
    """A function (name of the run folder, changes) -> the adapter's path, of seven steps with a state after every second."""

    def go(name: str, draw=None, **changes) -> Path:
        usual = {"steps": 7, "batch_size": 2, "rank": 2, "resolution": 32, "precision": "fp32", "save_every": 2, "learning_rate": 1e-2}
        usual |= {"caption_dropout": 0.3, "flip": True, "images": pictures, "output": folder / name}
        return training.train(TrainConfig(**usual | changes), draw, progress=False, components=components)

    return go
