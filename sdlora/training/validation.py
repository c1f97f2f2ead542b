"""The loss on held-out pictures: the same noise and the same timesteps every time, so that two of its values differ by the adapter alone.

It is the plain mean of squares, whatever weights the training's own loss has, so that runs with different losses can be compared.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sdlora import hardware, texts
from sdlora.conditioning import predict, time_ids
from sdlora.data.encode import Row
from sdlora.loss import noised, squared_error, target
from sdlora.training import draws, loop, metrics
from sdlora.training.heldout import Held
from sdlora.training.run import Run

SEED = 0  # of the noise: not the run's own, so that runs with different seeds can be compared
ROWS = 4  # in a call of the U-Net, whatever the batch: with more, SDXL would take more than a step with checkpoints does


@dataclass(frozen=True)
class Score:
    step: int
    loss: float  # mean over all pictures and timesteps
    timesteps: tuple[int, ...]
    losses: tuple[float, ...]  # by timestep, means over the pictures
    pictures: str = ""  # a name for their contents; "" in files of a version that did not write it

    def like(self, held: Held) -> bool:
        """Whether it can be compared with what `held` gives."""
        return self.pictures in ("", held.pictures) and len(self.timesteps) == held.strata


@torch.no_grad()
def score(run: Run, held: Held) -> Score:
    """The loss of what would be saved of the run as it is now."""
    components = run.components
    total = len(components.alphas_bar)
    times = torch.tensor([(2 * i + 1) * total // (2 * held.strata) for i in range(held.strata)])
    with run.result(), hardware.plain(components.unet):
        rows = torch.stack([_losses(run, row, times) for row in held.source.data.rows])
    return Score(run.step, rows.mean().item(), tuple(times.tolist()), tuple(rows.mean(0).tolist()), held.pictures)


def _losses(run: Run, row: Row, times: torch.Tensor) -> torch.Tensor:
    """(strata,) in fp64 of one picture, whose noise depends on its bytes alone. One at a time: so no bit depends on the others."""
    view = row.views[0][0]
    noise = torch.stack([draws.normal(tuple(view.latents.shape), SEED, f"validation {row.key}", i) for i in range(len(times))])
    found = [_part(run, row, *part) for part in zip(noise.split(ROWS), times.split(ROWS), strict=True)]
    return torch.cat(found).double().cpu()


def _part(run: Run, row: Row, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    components, count, where, view = run.components, len(times), run.components.device, row.views[0][0]
    clean, noise, steps = view.latents.expand_as(noise).to(where), noise.to(where), times.to(where)
    bar = components.alphas_bar.to(where)[steps]
    with loop.precision(run):
        hint = run.prompts([row.wordings[0]] * count).to(dtype=components.dtype)
        ids = time_ids([view.sizes] * count).to(where)
        said = predict(components.unet, noised(clean, noise, bar).to(components.dtype), steps, hint, ids)
    return squared_error(said, target(clean, noise, bar, components.prediction))


def best(scores: Sequence[Score]) -> Score | None:
    """The lowest loss after a step; what was before the first is only for comparison."""
    return min((s for s in scores if s.step > 0 and math.isfinite(s.loss)), key=lambda s: s.loss, default=None)


def read(path: Path) -> list[Score]:
    return [_score(line) for line in metrics.read(path)]


def append(path: Path, found: Score) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(_line(found))


def rewind(path: Path, step: int, held: Held) -> tuple[list[Score], int]:
    """Forget what comes after `step`: what is left, and how many were left out because they are of other pictures or timesteps."""
    before = [found for found in read(path) if found.step <= step]
    kept = [found for found in before if found.like(held)]
    texts.write(path, "".join(map(_line, kept)))
    return kept, len(before) - len(kept)


def _line(found: Score) -> str:
    """JSON has no word for what is no number."""
    numbers = [value if math.isfinite(value) else None for value in (found.loss, *found.losses)]
    return json.dumps(asdict(found) | {"loss": numbers[0], "losses": numbers[1:]}, allow_nan=False) + "\n"


def _score(line: dict[str, Any]) -> Score:
    loss, *losses = (math.nan if value is None else value for value in (line["loss"], *line["losses"]))
    return Score(line["step"], loss, tuple(line["timesteps"]), tuple(losses), line.get("pictures", ""))


def verdict(scores: Sequence[Score]) -> str | None:
    """In words: the best step beside the start."""
    found, start = best(scores), next((s for s in scores if s.step == 0), None)
    if found is None:
        return None
    if start is None:
        return f"best validation loss {found.loss:.4f} at step {found.step}"
    if found.loss >= start.loss:
        return f"no step has a better validation loss than the start's {start.loss:.4f}; the best is {found.loss:.4f} at step {found.step}"
    return f"best validation loss {found.loss:.4f} at step {found.step}; {start.loss:.4f} at the start"
