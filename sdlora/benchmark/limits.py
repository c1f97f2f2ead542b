"""Why a goal is not met: where the time goes, and what would be left if arithmetic, or memory, were all that takes time."""

from collections.abc import Iterator

from sdlora.benchmark.names import BASE, LATE, OVER, PICTURE, READY, STEP
from sdlora.benchmark.result import Analysis, Goal, Result, Row
from sdlora.benchmark.units import duration
from sdlora.benchmark.work import Work


def lines(result: Result, analysis: Analysis) -> Iterator[str]:
    """A line for every goal that is missed or open, where the result can say why; each reason once."""
    said = set()
    for goal in analysis.goals:
        name = goal.name.removesuffix(STEP).removesuffix(PICTURE)
        if goal.outcome != "met" and name not in said:
            said.add(name)
            one, _, other = name.partition(OVER)
            line = by_parts(result, one, other) if one in (READY, LATE) else by_work(result, analysis, goal, one, other or BASE)
            if line:
                yield f"{name}: {line}"


def by_work(result: Result, analysis: Analysis, goal: Goal, one: str, other: str) -> str:
    """Of two conditions: a step of each, what was counted for it, and what the operations reached."""
    counts = {found.condition: found for found in result.work}
    rows = {row.condition: row for row in analysis.rows}
    if one not in rows or other not in rows or one not in counts:
        return ""
    mine, theirs = step(rows[one]), step(rows[other])
    parts = [f"a step takes {duration(mine)} against {duration(theirs)}"]
    if other in counts:
        ratios = counts[one].flops / counts[other].flops, counts[one].bytes / counts[other].bytes
        parts.append(
            f"the limit by its floating-point operations is {ratios[0]:.3f}, by the bytes that its operations move {ratios[1]:.3f}"
        )
        over = theirs * (against(rows[one], rows[other]) - max(ratios))
        if over > 0:
            parts.append(f"{duration(over)} of a step is neither, but what it takes to begin more and smaller operations")
    parts.append(reached(counts[one], mine))
    parts.append(f"beside the steps stand {duration(rows[one].text)} for the text and {duration(rows[one].vae)} in the VAE")
    return "; ".join(parts)


def against(one: Row, other: Row) -> float:
    """A step over a step: of those that took turns by their pairs, for the medians of all are of different pictures."""
    return one.turns.ratio if other.condition == BASE and one.turns else step(one) / step(other)


def step(row: Row) -> float:
    """Seconds."""
    return row.turn or row.step


def reached(count: Work, seconds: float) -> str:
    speeds = f"{count.flops / seconds / 1e9:.3g} GFLOP/s and {count.bytes / seconds / 1e9:.3g} GB/s"
    return f"its {count.flops / 1e9:.4g} GFLOP and {count.bytes / 1e6:.4g} MB come to {speeds}"


def by_parts(result: Result, one: str, other: str) -> str:
    """Of putting an adapter on: its parts."""
    times = {found.operation: duration(found.median) for found in result.handling}
    parts = [f"{name} {times[name]}" for name in ("read the file", "map it onto the model", "put on, stacked") if name in times]
    whole = [f"{name} {times[name]}" for name in (one, other) if name in times]
    return f"{', '.join(whole)}; of the first by itself {', '.join(parts)}" if parts and whole else ""
