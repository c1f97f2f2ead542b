"""Why a goal is not met: where the time goes, and what would be left if arithmetic, or memory, were all that takes time."""

from collections.abc import Iterator

from sdlora.benchmark.names import BASE, LATE, OVER, PICTURE, READY, STEP
from sdlora.benchmark.result import Analysis, Goal, Result, Row
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
    parts = [f"a step takes {1e3 * mine:.4g} ms against {1e3 * theirs:.4g} ms"]
    if other in counts:
        ratios = counts[one].flops / counts[other].flops, counts[one].bytes / counts[other].bytes
        parts.append(
            f"the limit by its floating-point operations is {ratios[0]:.3f}, by the bytes that its operations move {ratios[1]:.3f}"
        )
        over = mine - theirs * max(ratios)
        if over > 0:
            parts.append(f"{1e3 * over:.3g} ms of a step are neither, but what it takes to begin more and smaller operations")
    parts.append(reached(counts[one], mine))
    rest = rows[one].seconds - mine * len_steps(result)
    if rest > 0:
        parts.append(f"outside the steps a sample spends {1e3 * rest:.3g} ms, {1e3 * rows[one].vae:.3g} of them in the VAE")
    return "; ".join(parts)


def step(row: Row) -> float:
    """Seconds."""
    return row.turn or row.step


def len_steps(result: Result) -> int:
    """Calls of the U-Net in a sample."""
    return max((len(sample.steps) for sample in result.samples), default=0)


def reached(count: Work, seconds: float) -> str:
    speeds = f"{count.flops / seconds / 1e9:.3g} GFLOP/s and {count.bytes / seconds / 1e9:.3g} GB/s"
    return f"its {count.flops / 1e9:.4g} GFLOP and {count.bytes / 1e6:.4g} MB come to {speeds}"


def by_parts(result: Result, one: str, other: str) -> str:
    """Of putting an adapter on: its parts."""
    times = {found.operation: 1e3 * found.median for found in result.handling}
    parts = [f"{name} {times[name]:.3g} ms" for name in ("read the file", "map it onto the model", "put on, stacked") if name in times]
    whole = [f"{name} {times[name]:.3g} ms" for name in (one, other) if name in times]
    return f"{', '.join(whole)}; of the first by itself {', '.join(parts)}" if parts and whole else ""
