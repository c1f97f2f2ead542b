"""The benchmark as a picture: every pair's ratio, the interval, the margin; and all times in the order in which they were taken."""

from pathlib import Path
from typing import Any

import numpy as np

from sdlora.atomic import replacing
from sdlora.benchmark.names import BASE
from sdlora.benchmark.report import verdict
from sdlora.benchmark.result import Analysis, Result, Row

COLOURS = (  # as many as there are conditions
    *("#4c566a", "#8fa1b3", "#2a78b8", "#d9822b", "#5a9e4b", "#a2559b", "#c0392b"),
    *("#16a3a3", "#8c6d31", "#e377c2", "#9a9a00", "#3b3b98", "#111111"),
)


def save(result: Result, analysis: Analysis, path: Path) -> None:
    """A PNG of two panels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    compared = [row for row in analysis.rows if row.comparison]
    figure = Figure(figsize=(11, 2.0 + 0.75 * len(compared)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    ratios(left, result, compared)
    times(right, result, analysis)
    figure.suptitle(f"{result.subject.name} on {Path(result.config.base).name}: time per sample against the base", fontsize=12)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def ratios(axes: Any, result: Result, rows: list[Row]) -> None:
    margin, rng = result.config.margin, np.random.default_rng(0)
    axes.axvspan(1 / (1 + margin), 1 + margin, color="#5a9e4b", alpha=0.12, lw=0)
    axes.axvline(1, color="#4c566a", lw=1)
    for height, row in enumerate(reversed(rows)):
        c, points = row.comparison, pairs(result, row.condition)
        assert c is not None
        colour = COLOURS[(len(rows) - height) % len(COLOURS)]
        axes.plot(points, height + rng.uniform(-0.12, 0.12, len(points)), "o", ms=4.5, alpha=0.55, color=colour, mew=0)
        axes.plot([c.low, c.high], [height, height], color=colour, lw=3, solid_capstyle="butt")
        axes.plot(c.ratio, height, "D", ms=7, color=colour, mec="white")
        words = f"{c.ratio:.3f}  [{c.low:.3f}, {c.high:.3f}]  {verdict(c)}"
        axes.annotate(words, (0.01, height + 0.3), xycoords=("axes fraction", "data"), fontsize=8.5, color="#2e3440")
    axes.set(yticks=range(len(rows)), yticklabels=[row.condition for row in reversed(rows)], ylim=(-0.5, len(rows) - 0.35))
    axes.set_xlabel(
        f"time / time of the base, per pair; band: margin of {100 * margin:g} %; bar: {100 * result.config.confidence:g} % interval"
    )
    axes.spines[["top", "right", "left"]].set_visible(False)


def pairs(result: Result, condition: str) -> list[float]:
    base = {s.block: s.seconds for s in result.samples if s.condition == BASE}
    return [s.seconds / base[s.block] for s in result.samples if s.condition == condition and s.block in base]


def times(axes: Any, result: Result, analysis: Analysis) -> None:
    from matplotlib.ticker import MaxNLocator

    for row, colour in zip(analysis.rows, COLOURS * len(analysis.rows), strict=False):
        samples = [s for s in result.samples if s.condition == row.condition]
        axes.plot([s.block for s in samples], [1e3 * s.seconds for s in samples], "o-", ms=3, lw=0.8, color=colour, label=row.condition)
    axes.set(xlabel="block", ylabel="ms per sample", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
