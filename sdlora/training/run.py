"""A training underway: the only object that changes. Saving its state and loading it makes a resume exact."""

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdlora import apply, atomic, files
from sdlora.adapter import Adapter
from sdlora.errors import SdloraError
from sdlora.models import Components
from sdlora.training import again, draws, schedule
from sdlora.training.batches import Source
from sdlora.training.config import TrainConfig
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
    step: int = 0  # optimiser steps done

    def set_rate(self) -> float:
        """The learning rate of the coming step onto all groups; returns the first group's."""
        factor = schedule.factor(self.step, self.config)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        return self.rates[0] * factor

    def adapter(self, metadata: Mapping[str, str] | None = None) -> Adapter:
        return apply.extract(self.components.modules, metadata)

    def save_state(self, path: Path) -> None:
        state = {
            "step": self.step,
            "identity": dict(self.identity),
            "parameters": [parameter.detach().cpu() for parameter in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        with atomic.replacing(path) as temporary:
            torch.save(state, temporary)

    def load_state(self, path: Path) -> None:
        """Go on from `path`; SdloraError if it was made from another base or other images."""
        state = read_state(path)
        for what in {**state["identity"], **self.identity}:
            if state["identity"].get(what) != self.identity.get(what):
                raise SdloraError(f"the {what} changed since the run in {path.parent} began; choose another output, or delete that folder")
        with torch.no_grad():
            for parameter, saved in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]


def read_state(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise SdloraError(f"{path} is damaged; delete its folder to train anew") from error


def trainable(components: Components, config: TrainConfig) -> tuple[list[nn.Parameter], list[dict[str, Any]]]:
    """Put fresh updates onto the targets: all parameters, and AdamW's groups (U-Net, text encoders)."""
    ranks, alphas = apply.plan(components.modules, config.parts)
    source = draws.generator(config.seed, "first weights")
    parameters: list[nn.Parameter] = []
    groups = []
    for component, module in components.modules.items():
        own = [name for name in ranks if name.startswith(component + ".")]
        if own:
            fresh = apply.inject({component: module}, own, ranks, alphas, source)
            groups.append({"params": fresh, "lr": config.rate(component)})
            parameters += fresh
    return parameters, groups


def adamw(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Fused: on 112 small matrices the plain loop of PyTorch's AdamW costs more than its arithmetic."""
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=fused)


def metadata(run: Run) -> dict[str, str]:
    """The file's header: what the adapter is, what it was made from and how. No path of this machine."""
    config = run.config
    captions = run.sources[0].data.captions
    hashes = {f"{name}_hash": run.identity[name] for name in ("images", "init") if name in run.identity}
    tags: dict[str, int] = {}
    for caption in captions:
        for tag in (part.strip() for part in caption.split(",")):
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
        resolution=config.resolution,
        settings=again.written(config) | {"images": len(captions)} | hashes,
    ) | {"ss_steps": str(run.step)}
