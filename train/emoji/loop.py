"""What both trainings of the recipe share: warm-up and cosine over a time budget, a weight average, resumable state."""

import copy
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn


def rate(progress: float, step: int, warmup: int = 150) -> float:
    """Linear warm-up in steps, cosine to 2 % over progress in [0, 1]."""
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Training:
    """Modules trained together for `steps` steps; `state.pt` in its folder continues an interrupted run."""

    def __init__(self, modules: nn.ModuleDict, optimizers: list, steps: int, path: Path, decay: float = 0.998):
        self.modules, self.optimizers, self.steps, self.path = modules, optimizers, steps, path
        self.average = copy.deepcopy(modules).requires_grad_(False)
        self.decay, self.step, self.seconds = decay, 0, 0.0
        self.base_rates = [g["lr"] for o in optimizers for g in o.param_groups]
        if path.exists():
            self.load()

    def load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        state = {
            "modules": self.modules.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.path)

    def run(self, loss_of: Callable[[int], Tensor], seconds: float, report: Callable[[int, float, float], None]) -> None:
        """Train until `steps` steps or, if sooner, until the time budget is spent; the schedule follows whichever is nearer."""
        total, last_save = 0.0, time.monotonic()
        while (progress := max(self.step / self.steps, self.seconds / seconds)) < 1:
            start = time.monotonic()
            groups = [g for o in self.optimizers for g in o.param_groups]
            for group, base in zip(groups, self.base_rates):
                group["lr"] = base * rate(progress, self.step)
            loss = loss_of(self.step)
            loss.backward()
            nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.follow()
            self.step += 1
            self.seconds += time.monotonic() - start
            total += loss.item()
            if self.step % 50 == 0:
                report(self.step, total / 50, self.seconds)
                total = 0.0
            if time.monotonic() - last_save > 120:
                self.save()
                last_save = time.monotonic()
        self.save()

    @torch.no_grad()
    def follow(self) -> None:
        """The running average of the weights, short at first."""
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for mean, now in pairs(self.average, self.modules):
            mean.lerp_(now, 1 - decay)


def pairs(one: nn.Module, other: nn.Module) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(one.state_dict().values(), other.state_dict().values())
