"""The η sweep as a grid: strengths across, prompts or seeds down, further seeds on sheets of their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdlora.drawing import reading
from sdlora.drawing.axes import Axis, values
from sdlora.drawing.grid import Grid
from sdlora.errors import SdloraError
from sdlora.generation import parse_seeds


def swept(file: Path, prompts: tuple[str, ...], eta: str, given: Mapping[str, Any]) -> Grid:
    """`given` are further settings of Drawing."""
    if not file.is_file():
        raise SdloraError(f"there is no adapter {file}; check the path")
    seeds = Axis("seed", tuple(str(seed) for seed in parse_seeds(str(given.get("seed", "1")))))
    strengths = Axis("strength", tuple(values("strength", eta)))
    rows = [Axis("prompt", prompts)] if len(prompts) > 1 else []
    further = [*rows, *([seeds] if len(seeds.values) > 1 else []), None, None]
    settings = {**given, "prompt": prompts[:1], "adapter": (str(file),), "seed": seeds.values[0]}
    return Grid(reading.merged(settings), strengths, further[0], further[1], title=f"{file.absolute().parent.name}/{file.name}")
