"""The benchmark as a picture: every pair's ratio, the interval, the margin; and all times in the order in which they were taken."""

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sdlora.atomic import replacing
from sdlora.benchmark.report import verdict
from sdlora.benchmark.result import Analysis, Result, drawn
from sdlora.benchmark.statistics import Comparison

BOX = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1}  # so that no line runs through the words
COLOURS = (  # as many as there are conditions
    *("#4c566a", "#8fa1b3", "#2a78b8", "#d9822b", "#5a9e4b", "#a2559b", "#c0392b"),
    *("#16a3a3", "#8c6d31", "#e377c2", "#9a9a00", "#3b3b98", "#111111", "#7f4f24"),
    *("#e0a458", "#7a1f3d"),
)


def save(result: Result, analysis: Analysis, path: Path) -> None:
    """A PNG of two panels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = [(row.condition, row.turns or row.comparison) for row in analysis.rows]
    lines = [Line(name, comparison, points(result, name), result.config.margins.get(name)) for name, comparison in found if comparison]
    figure = Figure(figsize=(11, 2.0 + 0.75 * len(lines)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    steps = any(row.turns for row in analysis.rows)
    words = "step / step of the base in turns, a point per picture" if steps else "time / time of the base, per pair"
    ratios(left, lines, result.config.margin, result.config.confidence, words)
    times(right, result, analysis)
    of = "a step, in turns with the base's" if steps else "time per sample against the base"
    figure.suptitle(f"{result.subject.name} on {Path(result.config.base).name}: {of}", fontsize=12)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


@dataclass(frozen=True)
class Line:
    """What is compared: its name, what came of it, and the ratio of every block."""

    name: str
    comparison: Comparison
    points: list[float]
    margin: float | None = None  # of its own


def ratios(axes: Any, lines: list[Line], margin: float, confidence: float, words: str) -> None:
    """A row for each line, from above: every ratio a point, the interval a bar, the geometric mean a diamond."""
    rng = np.random.default_rng(0)
    axes.axvspan(1 / (1 + margin), 1 + margin, color="#5a9e4b", alpha=0.12, lw=0)
    axes.axvline(1, color="#4c566a", lw=1)
    for height, line in enumerate(reversed(lines)):
        c, points = line.comparison, line.points
        colour = COLOURS[(len(lines) - height) % len(COLOURS)]
        if line.margin is not None:
            axes.fill_between([1 / (1 + line.margin), 1 + line.margin], height - 0.24, height + 0.24, color="#5a9e4b", alpha=0.3, lw=0)
        axes.plot(points, height + rng.uniform(-0.12, 0.12, len(points)), "o", ms=4.5, alpha=0.55, color=colour, mew=0)
        axes.plot([c.low, c.high], [height, height], color=colour, lw=3, solid_capstyle="butt")
        axes.plot(c.ratio, height, "D", ms=7, color=colour, mec="white")
        said = f"{c.ratio:.3f}  [{c.low:.3f}, {c.high:.3f}]  {verdict(c)}"
        axes.annotate(said, (0.01, height + 0.3), xycoords=("axes fraction", "data"), fontsize=8.5, color="#2e3440", bbox=BOX)
    axes.set(yticks=range(len(lines)), yticklabels=[line.name for line in reversed(lines)], ylim=(-0.5, len(lines) - 0.35))
    axes.set_xlabel(f"{words}\nbands: margins, {100 * margin:g} % unless darker; bar: {100 * confidence:g} % interval")
    axes.set_xlim(*extent([1 / (1 + margin), 1 + margin, *(value for line in lines for value in (*line.points, line.comparison.ratio))]))
    axes.spines[["top", "right", "left"]].set_visible(False)


def extent(values: list[float]) -> tuple[float, float]:
    """What is seen of the axis: all of `values`; an interval of few pairs may go beyond."""
    low, high = min(values), max(values)
    return low - 0.15 * (high - low), high + 0.15 * (high - low)


def points(result: Result, condition: str) -> list[float]:
    """The ratio of every block."""
    clock = "turns" if result.config.pairing == "steps" else "seconds"
    return [math.exp(block[condition].log(clock)) for block in drawn(result.samples) if condition in block]


def times(axes: Any, result: Result, analysis: Analysis) -> None:
    from matplotlib.ticker import MaxNLocator

    for row, colour in zip(analysis.rows, COLOURS * len(analysis.rows), strict=False):
        by_block: dict[int, list[float]] = defaultdict(list)
        for sample in result.samples:
            if sample.condition == row.condition:
                by_block[sample.block].append(1e3 * sample.seconds)
        axes.plot(list(by_block), [median(several) for several in by_block.values()], "o-", ms=3, lw=0.8, color=colour, label=row.condition)
    axes.set(xlabel="block", ylabel="ms per sample", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
