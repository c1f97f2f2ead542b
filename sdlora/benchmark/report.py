"""A benchmark in words: the Markdown table and what goes with it."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sdlora.benchmark import limits
from sdlora.benchmark.conditions import CONDITIONS
from sdlora.benchmark.names import BASE, CONTROL
from sdlora.benchmark.result import Analysis, Ceiling, Goal, Result, Row, analyse
from sdlora.benchmark.statistics import Comparison
from sdlora.benchmark.units import duration, span
from sdlora.benchmark.work import Work

HEADER = (
    "condition",
    "pairs",
    "ms per image",
    "images/s",
    "ratio to base",
    "interval",
    "median ratio",
    "verdict",
    "processor time",
    "peak MiB",
    "over base, MiB",
)
BRIEF = ("condition", "ms per image", "ratio to base", "interval", "median ratio")  # for a terminal
HANDLING = ("operation", "median", "from … to")
TURNS = (
    "condition",
    "against",
    "ms a step",
    "ratio",
    "interval",
    "between pictures",
    "verdict",
    "processor time",
)  # of steps that took turns
PAIRS = ("condition", "against", "ratio", "interval", "median ratio", "verdict", "ratio of processor time")
GOALS = ("time over time, or time", "aimed at", "measured", "interval", "outcome")
HANDLED = ("operation", "against", "ratio", "interval", "times as fast")
WORK = ("condition", "GFLOP a step", "against base", "MB read and written", "against base", "time of a step against base")
PHASES = ("condition", "put on", "text", "U-Net, a step", "VAE", "save", "sample", "first picture", "peak of the process, MiB")

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # header and rows


def cells(row: Row, images: int) -> tuple[str, ...]:
    """One condition, a cell per word of HEADER."""
    c = row.comparison
    ratio = (*ratio_cells(c), processor(row.processor)) if c else ("1", "", "1", "", "1")
    memory = [mebibytes(row.peak_bytes), mebibytes(row.over_base, signed=True)]
    return (row.condition, str(row.samples), f"{1e3 * row.seconds / images:.1f}", f"{row.images_per_second:.2f}", *ratio, *memory)


def ratio_cells(c: Comparison) -> tuple[str, ...]:
    return (f"{c.ratio:.3f}", f"{c.low:.3f} … {c.high:.3f}", f"{c.median:.3f}", verdict(c))


def processor(c: Comparison | None) -> str:
    return f"{c.ratio:.3f} ({c.low:.3f} … {c.high:.3f})" if c else ""


def verdict(c: Comparison | None) -> str:
    """The verdict; if there is none yet, with the number of pairs that would bring one."""
    if c is None or c.verdict != "inconclusive":
        return c.verdict if c else ""
    return "inconclusive, " + (f"about {c.more_pairs:,} more pairs would decide" if c.more_pairs else "too noisy to decide")


def mebibytes(count: int | None, signed: bool = False) -> str:
    return "" if count is None else f"{count / 2**20:{'+' if signed else ''}.1f}"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """GitHub's Markdown; every column after the first is right-aligned."""
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def timing_rows(result: Result, analysis: Analysis) -> list[tuple[str, ...]]:
    return [cells(row, result.config.images) for row in analysis.rows]


def brief(result: Result, analysis: Analysis) -> list[Table]:
    """What fits into a terminal."""
    rows = [
        (*(cells[HEADER.index(name)] for name in BRIEF), row.comparison.verdict if row.comparison else "")
        for row, cells in zip(analysis.rows, timing_rows(result, analysis), strict=True)
    ]
    pairs = [(p.condition, p.against, *ratio_cells(p.comparison)[:3], p.comparison.verdict) for p in analysis.pairs]
    goals = goal_rows(analysis.goals, analysis.ceilings)
    tables: list[Table] = [
        ((*BRIEF, "verdict"), rows),
        turns_in_short(analysis),
        (PAIRS[: PAIRS.index("verdict") + 1], pairs),
    ]
    return [table for table in (*tables, (HANDLING, handling_rows(result)), (GOALS, goals)) if table[1]]


def handling_rows(result: Result) -> list[tuple[str, ...]]:
    return [
        (one.operation, duration(one.median), f"{duration(min(one.seconds))} … {duration(max(one.seconds))}") for one in result.handling
    ]


def pair_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    return [(pair.condition, pair.against, *ratio_cells(pair.comparison), processor(pair.processor)) for pair in analysis.pairs]


def turn_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """Steps that took turns: every condition against the base, and ours against the reference."""
    times = {row.condition: f"{1e3 * row.turn:.2f}" for row in analysis.rows if row.turn is not None}
    rows = [(row.condition, BASE, row.turns, row.turns_processor) for row in analysis.rows]
    pairs = [(pair.condition, pair.against, pair.turns, pair.turns_processor) for pair in analysis.pairs]

    def cells(name: str, against: str, c: Comparison, own: Comparison | None) -> tuple[str, ...]:
        ratio, interval, _, said = ratio_cells(c)
        return (name, against, times[name], ratio, interval, f"± {100 * c.spread:.2f} %", said, processor(own))

    return [cells(name, against, c, own) for name, against, c, own in (*rows, *pairs) if c]


def turns_in_short(analysis: Analysis) -> Table:
    """For a terminal."""
    kept = [i for i, name in enumerate(TURNS) if name not in ("between pictures", "processor time")]
    rows = [[row[i].partition(",")[0] for i in kept] for row in turn_rows(analysis)]
    return tuple(TURNS[i] for i in kept), [tuple(row) for row in rows]


def phase_rows(result: Result, analysis: Analysis) -> list[tuple[str, ...]]:
    return [
        (
            row.condition,
            duration(median(s.activate for s in result.samples if s.condition == row.condition)),
            *(duration(seconds) for seconds in (row.text, row.step, row.vae, row.save, row.seconds)),
            duration(row.first) if row.first is not None else "",
            mebibytes(row.host_bytes),
        )
        for row in analysis.rows
    ]


def goal_rows(goals: Sequence[Goal], ceilings: Sequence[Ceiling] = ()) -> list[tuple[str, ...]]:
    """Ratios with their intervals; times with the shortest and the longest."""
    ratios = [(one.name, f"at most {one.limit:g}", *ratio_cells(one.comparison)[:2], outcome(one)) for one in goals]
    times = [
        (one.name, f"at most {duration(one.limit)}", duration(one.median), f"{duration(one.low)} … {duration(one.high)}", outcome(one))
        for one in ceilings
    ]
    return [*ratios, *times]


def outcome(goal: Goal | Ceiling) -> str:
    """Whether the goal is reached, and if not, by how much it is missed."""
    found = goal.comparison.ratio if isinstance(goal, Goal) else goal.median
    return goal.outcome + (f" by {100 * (found / goal.limit - 1):.1f} %" if goal.outcome == "missed" else "")


def handled_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    found = ((one, one.comparison) for one in analysis.handling)
    return [(one.condition, one.against, f"{c.ratio:.3g}", f"{c.low:.3g} … {c.high:.3g}", f"{1 / c.ratio:.3g}") for one, c in found]


def work_rows(result: Result, analysis: Analysis) -> list[tuple[str, ...]]:
    """What the operations count to, beside what the clock says of a call of the U-Net."""
    counts, steps = {one.condition: one for one in result.work}, {row.condition: row.step for row in analysis.rows}
    if BASE not in counts or BASE not in steps:
        return []
    base = counts[BASE]

    def cells(one: Work) -> tuple[str, ...]:
        arithmetic = (f"{one.flops / 1e9:.4g}", f"{one.flops / base.flops:.4f}", f"{one.bytes / 1e6:.4g}", f"{one.bytes / base.bytes:.3f}")
        return (one.condition, *arithmetic, f"{steps[one.condition] / steps[BASE]:.3f}")

    return [cells(one) for one in result.work if one.condition in steps]


def speed_line(analysis: Analysis) -> str:
    """Ours against stock diffusers in images per second, which is the ratio of times upside down."""
    found = [pair.comparison for pair in analysis.pairs if (pair.condition, pair.against) == (BASE, "diffusers")]
    lines = (f"{1 / c.ratio:.2f} times ({1 / c.high:.2f} … {1 / c.low:.2f}) as many images per second as stock diffusers" for c in found)
    return "".join(f"**Without adapters ours draws {line}.**" for line in lines)


def drift_line(analysis: Analysis) -> str:
    """The conditions whose ratio changed on the way, at a level of 1 % over all of them (Bonferroni)."""
    rows = [row for row in analysis.rows if row.drift]
    moved = [f"{row.condition} by {100 * row.drift[0]:+.1f} %" for row in rows if row.drift and row.drift[1] < 0.01 / len(rows)]
    return f"**From the first block to the last the ratio drifted: {', '.join(moved)}.**" if moved else ""


def published(result: Result, analysis: Analysis) -> str:
    """The table that this benchmark answers, in its own form: a line per prompt, the time of a run without and with the adapter."""
    names = [row.condition for row in analysis.rows]
    lines = []
    for prompt in result.config.prompts:
        by_name = {n: [s.seconds for s in result.samples if (s.condition, s.prompt) == (n, prompt)] for n in names}
        if all(by_name.values()):
            lines.append((prompt, str(len(by_name[BASE])), *(span(median(times)) for times in by_name.values())))
    words = {BASE: "without LoRA", CONTROL: "without, again", "stacked": "with LoRA (stacked)", "fused": "with LoRA (fused)"}
    return table(("prompt", "runs", *(words.get(name, name) for name in names)), lines)


def control_line(analysis: Analysis) -> str:
    if analysis.control is None:
        return "There is no control (base against base) among the conditions."
    row = analysis.row(CONTROL)
    name = "The control (base against base, step by step)" if row.turns else "The control (base against base)"
    comparison = row.turns or row.comparison
    if not analysis.control:
        return f"**{name} does not cover 1: the machine was too noisy, or too busy, to trust the ratios.**"
    if comparison and comparison.verdict == "equivalent":
        return f"{name} covers 1, as it must, and is within the margin."
    return f"{name} covers 1, as it must, but not within the margin: small differences cannot be told apart here."


def markdown(result: Result) -> str:
    """The whole report."""
    analysis = analyse(result)
    parts = [
        "# What the adapter costs",
        subject_line(result),
        f"**{interrupted(result)}**" if not result.complete else "",
        table(HEADER, timing_rows(result, analysis)) if analysis else "Fewer than two blocks were measured: no ratios.",
        "## Step by step, in turns" if analysis and turn_rows(analysis) else "",
        table(TURNS, turn_rows(analysis)) if analysis and turn_rows(analysis) else "",
        control_line(analysis) if analysis else "",
        drift_line(analysis) if analysis else "",
        method(result),
        *aimed_at(result, analysis),
        f"## The time of a run of {result.config.images} pictures, m:ss.d, medians" if analysis and result.config.runs else "",
        published(result, analysis) if analysis and result.config.runs else "",
        "## Ours and the reference" if analysis and analysis.pairs else "",
        table(PAIRS, pair_rows(analysis)) if analysis and analysis.pairs else "",
        speed_line(analysis) if analysis else "",
        "## Where the time goes, medians" if analysis else "",
        table(PHASES, phase_rows(result, analysis)) if analysis else "",
        "## The arithmetic of a step" if analysis and work_rows(result, analysis) else "",
        table(WORK, work_rows(result, analysis)) if analysis and work_rows(result, analysis) else "",
        "## Putting an adapter on and off",
        table(HANDLING, handling_rows(result)),
        table(HANDLED, handled_rows(analysis)) if analysis and analysis.handling else "",
        "## Checked before the clock started",
        "\n".join(f"- {check.law}: {check.found}" for check in result.gate),
        "## Conditions and environment",
        "\n".join(f"- **{name}**: {CONDITIONS[name].meaning}" for name in measured(result)),
        "\n".join(f"- {key}: {value}" for key, value in flat(result.environment)),
        f"Load during the samples: {load_line(result)}." if result.samples else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def aimed_at(result: Result, analysis: Analysis | None) -> list[str]:
    """The section of what the settings aim at, and where what is not reached goes."""
    rows = goal_rows(analysis.goals, analysis.ceilings) if analysis else []
    if not rows or analysis is None:
        return []
    notes = "\n".join(f"- {line}" for line in limits.lines(result, analysis))
    return ["## Aimed at", table(GOALS, rows), f"Where the time of what is not met goes:\n\n{notes}" if notes else ""]


def subject_line(result: Result) -> str:
    config, subject = result.config, result.subject
    return (
        f"Base {Path(config.base).name}: {config.steps} steps, guidance {config.guidance:g}, {config.images} image(s) per sample, "
        f"{config.precision} on {result.environment['device']}. Adapter {subject.name} at η = {config.strength:g}: "
        f"{subject.layers} layers, {subject.parameters:,} parameters, {mebibytes(subject.bytes)} MiB. {result.environment['date']}."
    )


PICTURES = """Every block draws one prompt and seed under all conditions, in a balanced random order, each after a discarded warm-up.
The ratio is the geometric mean over blocks of the time over the base's time in the same block; its {confidence:g} % interval is a
studentised bootstrap over blocks. """
STEPS = """In every block each condition draws one prompt and seed at the same time as the base: they take turns at every step, on one
thread, each with networks of its own, and what slows the machine down for longer than a step slows both. Who begins, and which of two
sets of networks has the adapter, changes from block to block in a balanced random order. A step is all that the loop does in it: U-Net,
guidance, sampler. *Step by step*: the median over a picture's steps of ln(time / time of the base's step beside it), so that a step which
the system interrupted counts little; then the mean over pictures, with a studentised bootstrap over pictures as {confidence:g} % interval,
since steps of one picture depend on each other. The first step of a picture, which also finds out what stays the same, is left out of it.
In the table of pictures the time of a picture is the sum of all its turns, from the text to the pixels, no outlier left out; the ratio is
the geometric mean over blocks. What this does not measure: the two evict each other from the processor's caches, so that a step in turns
can take longer than one after its own kind, for both; and an adapter's putting on comes before (*put on*, below). """
JUDGED = """*Equivalent*: two one-sided tests at {level:.3g} %, Student's and the bootstrap's, put the ratio within
the margin of {margin}, that was declared beforehand. *Slower*, *faster*: the interval leaves 1 out. Processor time is the same ratio of
the time that the process itself had on all cores: other programs hardly touch it. Peak memory is {memory},
taken in drawings of its own."""


def method(result: Result) -> str:
    cuda = result.environment["device"].startswith("cuda")
    text = (STEPS if result.config.pairing == "steps" else PICTURES) + JUDGED
    return text.format(
        confidence=100 * result.config.confidence,
        level=100 * (1 - result.config.confidence),
        margin=margins(result),
        memory="PyTorch's on the GPU" if cuda else "the resident set of the whole process, libraries included",
    )


def margins(result: Result) -> str:
    own = [f"{name} {100 * margin:g} %" for name, margin in result.config.margins.items() if name in measured(result)]
    return f"{100 * result.config.margin:g} %" + (f" ({', '.join(own)})" if own else "")


def measured(result: Result) -> list[str]:
    names = {one.condition for one in result.memory} | {sample.condition for sample in result.samples}
    return [name for name in CONDITIONS if name in names]


def load_line(result: Result) -> str:
    loads = [sample.load for sample in result.samples if sample.load is not None]
    clocks = [sample.clock for sample in result.samples if sample.clock is not None]
    words = [f"{min(loads):g} … {max(loads):g} processes, median {median(loads):g}"] if loads else []
    words += [f"clock {min(clocks):.0f} … {max(clocks):.0f} MHz"] if clocks else []
    return "; ".join(words) or "not told by this system"


def blocks(result: Result) -> int:
    return len({sample.block for sample in result.samples})


def interrupted(result: Result) -> str:
    return f"Interrupted: {blocks(result)} of {result.config.planned} blocks were measured."


def flat(environment: dict[str, Any]) -> list[tuple[str, str]]:
    inner = {k: ", ".join(f"{a} {b}" for a, b in v.items()) if isinstance(v, dict) else v for k, v in environment.items()}
    return [(key.replace("_", " "), str(value)) for key, value in inner.items() if value not in ("", None)]
