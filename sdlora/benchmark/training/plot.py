"""The training benchmark as a picture: every block's ratio, the interval, the margin."""

from pathlib import Path

from sdlora.atomic import replacing
from sdlora.benchmark import plot
from sdlora.benchmark.training.result import Analysis, Result


def save(result: Result, analysis: Analysis, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    seconds = {(s.block, s.contender): s.seconds for s in result.samples}
    found = range(len({block for block, _ in seconds}))
    lines = []
    for pair in analysis.pairs:
        both = [((b, pair.contender), (b, pair.against)) for b in found]
        points = [seconds[one] / seconds[other] for one, other in both if one in seconds and other in seconds]
        lines.append(plot.Line(f"{pair.contender}\n/ {pair.against}", pair.comparison, points))
    figure = Figure(figsize=(10, 1.6 + 0.9 * len(lines)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    plot.ratios(figure.subplots(), lines, result.config.margin, result.config.confidence, "time of a step over time of a step, per pair")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
