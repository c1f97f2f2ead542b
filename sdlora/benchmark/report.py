"""A benchmark in words: the Markdown table and what goes with it."""

from pathlib import Path
from typing import Any

from sdlora.benchmark.conditions import CONDITIONS
from sdlora.benchmark.result import Analysis, Result, Row, analyse

HEADER = (
    "condition",
    "pairs",
    "ms per image",
    "images/s",
    "ratio to base",
    "interval",
    "median ratio",
    "verdict",
    "peak MiB",
    "over base, MiB",
)
BRIEF = ("condition", "ms per image", "ratio to base", "interval", "verdict", "over base, MiB")  # for a terminal
HANDLING = ("operation", "median", "from … to")


def cells(row: Row, images: int) -> tuple[str, ...]:
    """One condition, a cell per word of HEADER."""
    c = row.comparison
    ratio = (f"{c.ratio:.3f}", f"{c.low:.3f} … {c.high:.3f}", f"{c.median:.3f}", verdict(row)) if c else ("1", "", "1", "")
    memory = [mebibytes(row.peak_bytes), mebibytes(row.over_base, signed=True)]
    return (row.condition, str(row.samples), f"{1e3 * row.seconds / images:.1f}", f"{row.images_per_second:.2f}", *ratio, *memory)


def verdict(row: Row) -> str:
    """The verdict; if there is none yet, with the number of pairs that would bring one."""
    c = row.comparison
    if c is None or c.verdict != "inconclusive":
        return c.verdict if c else ""
    return "inconclusive, " + (f"about {c.more_pairs:,} more pairs would decide" if c.more_pairs else "too noisy to decide")


def mebibytes(count: int | None, signed: bool = False) -> str:
    return "" if count is None else f"{count / 2**20:{'+' if signed else ''}.1f}"


def duration(seconds: float) -> str:
    """In the unit in which it reads best."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """GitHub's Markdown; every column after the first is right-aligned."""
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def timing_rows(result: Result, analysis: Analysis) -> list[tuple[str, ...]]:
    return [cells(row, result.config.images) for row in analysis.rows]


def brief_rows(result: Result, analysis: Analysis) -> list[tuple[str, ...]]:
    return [tuple(row[HEADER.index(name)] for name in BRIEF) for row in timing_rows(result, analysis)]


def handling_rows(result: Result) -> list[tuple[str, ...]]:
    return [
        (one.operation, duration(one.median), f"{duration(min(one.seconds))} … {duration(max(one.seconds))}") for one in result.handling
    ]


def control_line(analysis: Analysis) -> str:
    if analysis.control is None:
        return "There is no control (base against base) among the conditions."
    if analysis.control:
        return "The control (base against base) covers 1, as it must."
    return "**The control (base against base) does not cover 1: the machine was too noisy, or too busy, to trust the ratios.**"


def markdown(result: Result) -> str:
    """The whole report."""
    analysis = analyse(result)
    parts = [
        "# What the adapter costs",
        subject_line(result),
        "" if result.complete else f"**Interrupted: {blocks(result)} of {result.config.blocks} blocks were measured.**",
        table(HEADER, timing_rows(result, analysis)) if analysis else "Fewer than two blocks were measured: no ratios.",
        control_line(analysis) if analysis else "",
        method(result),
        "## Putting an adapter on and off",
        table(HANDLING, handling_rows(result)),
        "## Checked before the clock started",
        "\n".join(f"- {check.law}: {check.found}" for check in result.gate),
        "## Conditions and environment",
        "\n".join(f"- **{name}**: {condition.meaning}" for name, condition in CONDITIONS.items()),
        "\n".join(f"- {key}: {value}" for key, value in flat(result.environment)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def subject_line(result: Result) -> str:
    config, subject = result.config, result.subject
    return (
        f"Base {Path(config.base).name}: {config.steps} steps, guidance {config.guidance:g}, {config.images} image(s) per sample, "
        f"{config.precision} on {result.environment['device']}. Adapter {subject.name} at η = {config.strength:g}: "
        f"{subject.layers} layers, {subject.parameters:,} parameters, {mebibytes(subject.bytes)} MiB. {result.environment['date']}."
    )


METHOD = """Every block draws one prompt and seed under all conditions, in a balanced random order, each after a discarded warm-up.
The ratio is the geometric mean over blocks of the time over the base's time in the same block; its {confidence:g} % interval is a
studentised bootstrap over blocks. *Equivalent*: two one-sided t tests at {level:.3g} % put the ratio within the margin of {margin:g} %
that was declared beforehand. *Slower*, *faster*: the interval leaves 1 out. Peak memory is
{memory}, taken in drawings of its own."""


def method(result: Result) -> str:
    cuda = result.environment["device"].startswith("cuda")
    return METHOD.format(
        confidence=100 * result.config.confidence,
        level=100 * (1 - result.config.confidence),
        margin=100 * result.config.margin,
        memory="PyTorch's on the GPU" if cuda else "the resident set of the whole process, libraries included",
    )


def blocks(result: Result) -> int:
    return len({sample.block for sample in result.samples})


def flat(environment: dict[str, Any]) -> list[tuple[str, str]]:
    inner = {k: ", ".join(f"{a} {b}" for a, b in v.items()) if isinstance(v, dict) else v for k, v in environment.items()}
    return [(key.replace("_", " "), str(value)) for key, value in inner.items() if value not in ("", None)]
