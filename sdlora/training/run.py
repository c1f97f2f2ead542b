"""A training underway: the only object that changes. Saving its state and loading it makes a resume exact."""

import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdlora import apply, atomic, files
from sdlora.adapter import Adapter
from sdlora.apply.inject import Trained
from sdlora.captions import tags as tags_of
from sdlora.errors import SdloraError
from sdlora.models import Components
from sdlora.training import again, optimizers, schedule, words
from sdlora.training.batches import Source
from sdlora.training.config import TrainConfig
from sdlora.training.ema import Average
from sdlora.training.guard import Guard
from sdlora.training.heldout import Held
from sdlora.training.processes import ALONE, World
from sdlora.training.text import Prompts


@dataclass(eq=False)
class Run:
    config: TrainConfig  # settled
    components: Components  # with the trainable updates on them
    sources: Sequence[Source]
    prompts: Prompts
    identity: Mapping[str, str]  # hashes of what the run was started with: base, images
    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    rates: Sequence[float]  # the largest learning rate of each parameter group
    scaler: torch.amp.GradScaler  # of the loss, so that fp16 gradients do not vanish; idle in other precisions
    world: World = ALONE  # the processes that train together
    held: Held | None = None  # what it is validated with
    idle: Sequence[nn.Module] = ()  # what the steps do without
    originals: Sequence[nn.Module] = ()  # of it, the networks whose split twins the steps go through
    step: int = 0  # optimiser steps done
    average: Average | None = field(init=False)  # of the parameters, if the settings ask for one
    guard: Guard = field(init=False)

    def __post_init__(self) -> None:
        ema = self.config.ema
        self.average = Average(self.parameters, ema.decay, ema.warmup) if ema.on else None
        self.guard = Guard(self.config.explosion)

    @cached_property
    def carriers(self) -> dict[str, Trained]:
        return apply.carriers(self.components.modules)

    def set_rate(self) -> float:
        """The learning rate of the coming step onto all groups; returns the first group's."""
        factor = schedule.factor(self.step, self.config)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        return self.rates[0] * factor

    def adapter(self, metadata: Mapping[str, str] | None = None) -> Adapter:
        """What is saved: the trained numbers, or their average where one is kept."""
        with self.result():
            return apply.extract(self.components.modules, metadata)

    @contextmanager
    def result(self) -> Iterator[None]:
        """Inside, the model carries what is saved. The training's own numbers come back bit for bit, as they are only put aside."""
        shown: Sequence[Tensor] | None = self.average.values if self.average else optimizers.averaged(self.optimizer, self.parameters)
        own = [parameter.data for parameter in self.parameters]
        for parameter, value in zip(self.parameters, shown or own, strict=True):
            parameter.data = value
        try:
            yield
        finally:
            for parameter, value in zip(self.parameters, own, strict=True):
                parameter.data = value

    def save_state(self, path: Path) -> None:
        state = {
            "step": self.step,
            "identity": dict(self.identity),
            "parameters": [parameter.detach().cpu() for parameter in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": [value.cpu() for value in self.average.values] if self.average else [],
            "guard": self.guard.state,
        }
        with atomic.replacing(path) as temporary:
            torch.save(state, temporary)

    def load_state(self, path: Path) -> None:
        """Go on from `path`; SdloraError if it was made from another base or other images."""
        state = read_state(path)
        self.check(state, path)
        with torch.no_grad():
            for parameter, saved in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.restore(state["average"])
        self.guard.restore(state["guard"])
        self.step = state["step"]

    def check(self, state: Mapping[str, Any], path: Path) -> None:
        """SdloraError if `state`, of `path`, was made from another base or other images."""
        for what in {**state["identity"], **self.identity}:
            if state["identity"].get(what) != self.identity.get(what):
                raise SdloraError(f"the {what} changed since the run in {path.parent} began; choose another output, or delete that folder")


def read_state(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise SdloraError(f"{path} is damaged; delete its folder to train anew") from error


def metadata(run: Run) -> dict[str, str]:
    """The file's header: what the adapter is, what it was made from and how. No path of this machine."""
    config = run.config
    captions = run.sources[0].data.captions
    hashes = {f"{name}_hash": run.identity[name] for name in ("images", "init") if name in run.identity}
    tags: dict[str, int] = {}
    for caption in captions:
        for tag in tags_of(caption):
            tags[tag] = tags.get(tag, 0) + 1
    return files.header(
        run.adapter().layers,
        name=config.title,
        base=run.components.name,
        base_hash=run.components.hash,
        family=run.components.family,
        prediction=run.components.prediction,
        targets=config.targets,
        triggers=config.triggers,
        tag_frequency={config.images.name: tags},
        resolution=max(config.resolutions),
        settings=again.written(config) | {"images": len(captions)} | hashes,
    ) | {**words.header(config), "ss_steps": str(run.step)}
