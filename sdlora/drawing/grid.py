"""Grids: one to three settings against each other, a labelled sheet for each value of the third, and every cell's own picture.

Cells are drawn like a run that goes on where it stopped: values may be added to a grid, and only the new cells are drawn.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image

from sdlora import atomic, config, infotext, texts
from sdlora.drawing import reading, work
from sdlora.drawing.axes import Axis
from sdlora.drawing.crew import Crew
from sdlora.drawing.settings import MODEL, Drawing, scope
from sdlora.drawing.translate import requests
from sdlora.errors import SdloraError
from sdlora.generation import Request
from sdlora.sheet import contact_sheet

AXES = ("x", "y", "z")
MOST = 10_000  # cells
NAME = "grid"


@dataclass(frozen=True)
class Grid:
    """Grid(Drawing(prompt=("a cat",)), x=Axis("steps", (10, 20)), y=Axis("seed", (1, 2, 3))).draw()"""

    drawing: Drawing
    x: Axis
    y: Axis | None = None
    z: Axis | None = None
    title: str = ""

    @classmethod
    def read(cls, path: Path, given: Mapping[str, Any] | None = None) -> "Grid":
        """From a TOML file with settings, title and tables [x], [y] and [z]; `given` are settings that win over the file's."""
        data = config.read_toml(path)
        folder = path.absolute().parent
        axes = {name: Axis.read(data.pop(name), f"in [{name}] of {path}", folder) for name in AXES if name in data}
        if "x" not in axes:
            raise SdloraError(f'{path} has no [x]; write [x], and axis = "steps" and values = [10, 20] below it')
        title = str(data.pop("title", ""))
        return cls(reading.merged(reading.checked(data, f"in {path}", folder), given or {}), title=title, **axes)

    def __post_init__(self) -> None:
        if self.drawing.prompts:
            found = f"a grid with prompts = {str(self.drawing.prompts)!r}, a file for runs"
            raise SdloraError(f'{found}; put its lines on an axis: axis = "prompt" and values = ["…", "…"]')
        names = [axis.name for axis in self.axes if axis]
        if len(set(names)) < len(names) and not any(axis and axis.adapter for axis in self.axes):
            raise SdloraError(f"the grid has two axes {max(names, key=names.count)}; keep one of them")
        if self.count > MOST:
            raise SdloraError(f"the grid has {self.count:,} cells; at most {MOST:,}")

    @property
    def axes(self) -> tuple[Axis | None, ...]:
        return self.x, self.y, self.z

    @property
    def shape(self) -> tuple[int, int, int]:
        """Values of x, y and z; 1 for an axis that there is not."""
        return len(self.x.values), len(self.y.values) if self.y else 1, len(self.z.values) if self.z else 1

    @property
    def count(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    def cells(self) -> list[tuple[Drawing, Request]]:
        """x innermost, z outermost; each one picture. SdloraError for a cell that would be several."""
        found = []
        nx, ny, nz = self.shape
        for k, j, i in product(range(nz), range(ny), range(nx)):
            cell = self.drawing
            for axis, at in sorted(zip(self.axes, (i, j, k), strict=True), key=lambda pair: _order(pair[0])):
                cell = axis.applied(cell, at) if axis else cell
            pictures = requests(cell)
            if len(pictures) > 1:
                what = "prompt" if len(cell.prompt) > 1 else "seed"
                raise SdloraError(f'a cell of the grid is {len(pictures)} pictures; put the several on an axis = "{what}"')
            found.append((cell, pictures[0]))
        return found

    def draw(self, say: work.Say = lambda text: None, bar: work.Bar = work.quiet) -> "Drawn":
        """Draw what is missing, save all cells and the sheets."""
        crew = Crew.mustered(self.drawing.device)
        start = perf_counter()
        folder = atomic.writable_folder(self.drawing.output)
        cells = self.cells()
        files: list[Path | None] = [None] * len(cells)
        new: list[Path] = []
        for drawing, places in _by_model(cells).items():
            wanted = [cells[i][1] for i in places]
            result = work.resumed(replace(drawing, output=folder), wanted, say, bar, crew)
            new += result.paths
            for i, path in zip(places, result.named, strict=True):
                files[i] = path
        sheets = self._sheets([path for path in files if path is not None], folder) if crew.first else []
        return Drawn(sheets, new, len(cells), perf_counter() - start)

    def _sheets(self, files: Sequence[Path], folder: Path) -> list[Path]:
        """One for each value of z, and a list of the cells for programs."""
        nx, ny, nz = self.shape
        rows = [[files[(k * ny + j) * nx : (k * ny + j + 1) * nx] for j in range(ny)] for k in range(nz)]
        columns = [self.x.label(i) for i in range(nx)]
        sides = [self.y.label(j) for j in range(ny)] if self.y else []
        sheets = []
        for k in range(nz):
            path = folder / (f"{NAME}-{k + 1}.png" if nz > 1 else f"{NAME}.png")
            contact_sheet([[_opened(file) for file in row] for row in rows[k]], sides, columns, path, self._title(k))
            sheets.append(path)
        labels = {name: [axis.label(i) for i in range(len(axis.values))] for name, axis in zip(AXES, self.axes, strict=True) if axis}
        cells = [[[file.name for file in row] for row in layer] for layer in rows]
        texts.write(folder / f"{NAME}.json", json.dumps({"axes": labels, "cells": cells}, indent=1, ensure_ascii=False))
        return sheets

    def _title(self, k: int) -> str:
        """The third axis, and what is the same in all cells."""
        varied = {axis.name for axis in self.axes if axis}
        prompt = "" if varied & {"prompt", "replace"} or len(self.drawing.prompt) != 1 else self.drawing.prompt[0]
        adapters = "" if varied & {"adapter", "strength", "checkpoint"} else " + ".join(_short(a) for a in self.drawing.adapter)
        facts = [
            adapters,
            *(f"{name} {infotext.plain(getattr(self.drawing, name))}" for name in ("seed", "steps", "guidance") if name not in varied),
        ]
        lines = [self.title, self.z.label(k) if self.z else "", prompt, " · ".join(fact for fact in facts if fact)]
        return "\n".join(line for line in lines if line)


@dataclass(frozen=True)
class Drawn:
    """What came of a grid."""

    sheets: list[Path]
    new: list[Path] = field(default_factory=list)  # cells that were not there before
    cells: int = 0
    seconds: float = 0.0


def _order(axis: Axis | None) -> int:
    """Plain settings first: a replacement looks into the prompt of its row, a strength belongs to the checkpoint of its column."""
    return ("checkpoint", "strength", "replace").index(axis.name) + 1 if axis and axis.name in ("checkpoint", "strength", "replace") else 0


def _by_model(cells: Sequence[tuple[Drawing, Request]]) -> dict[Drawing, list[int]]:
    """The places of the cells that one loaded model draws; its settings are those of the first of them."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, (drawing, _) in enumerate(cells):
        groups.setdefault(tuple(getattr(drawing, name) for name in scope(MODEL)), []).append(i)
    return {cells[places[0]][0]: places for places in groups.values()}


def _short(adapter: str) -> str:
    """ "runs/style/adapter.safetensors=0.8" -> "style/adapter.safetensors=0.8": a run's adapters are all called so."""
    path = Path(adapter)
    return f"{path.parent.name}/{path.name}" if path.name.startswith("adapter.") else path.name


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image
