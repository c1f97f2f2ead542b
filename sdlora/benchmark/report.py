"""A benchmark in words: the Markdown table and what goes with it."""

from pathlib import Path
from statistics import median
from typing import Any

from sdlora.benchmark.conditions import BASE, CONDITIONS, CONTROL
from sdlora.benchmark.result import Analysis, Result, Row, analyse
from sdlora.benchmark.statistics import Comparison

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
PAIRS = ("condition", "against", "ratio", "interval", "median ratio", "verdict", "ratio of processor time")
PHASES = ("condition", "put on", "text", "U-Net, a step", "VAE", "save", "sample", "first picture", "peak of the process, MiB")


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


def duration(seconds: float) -> str:
    """In the unit in which it reads best."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def span(seconds: float) -> str:
    """m:ss.d, as the published table has it."""
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths % 600 // 10:02d}.{tenths % 10}"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """GitHub's Markdown; every column after the first is right-aligned."""
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def timing_rows(result: Result, analysis: Analysis) -> list[tuple[str, ...]]:
    return [cells(row, result.config.images) for row in analysis.rows]


def brief(result: Result, analysis: Analysis) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the one table that fits into a terminal."""
    rows = [
        (*(cells[HEADER.index(name)] for name in BRIEF), row.comparison.verdict if row.comparison else "")
        for row, cells in zip(analysis.rows, timing_rows(result, analysis), strict=True)
    ]
    return (*BRIEF, "verdict"), rows


def brief_pairs(analysis: Analysis) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows = [(p.condition, p.against, *ratio_cells(p.comparison)[:3], p.comparison.verdict) for p in analysis.pairs]
    return PAIRS[: PAIRS.index("verdict") + 1], rows


def handling_rows(result: Result) -> list[tuple[str, ...]]:
    return [
        (one.operation, duration(one.median), f"{duration(min(one.seconds))} … {duration(max(one.seconds))}") for one in result.handling
    ]


def pair_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    return [(pair.condition, pair.against, *ratio_cells(pair.comparison), processor(pair.processor)) for pair in analysis.pairs]


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


def published(result: Result, analysis: Analysis) -> str:
    """The table that this benchmark answers, in its own form: a line per prompt, the time of a run without and with the adapter."""
    names = [row.condition for row in analysis.rows]
    lines = []
    for prompt in result.config.prompts:
        by_name = {n: [s.seconds for s in result.samples if (s.condition, s.prompt) == (n, prompt)] for n in names}
        if all(by_name.values()):
            lines.append((prompt, str(len(by_name[BASE])), *(span(median(times)) for times in by_name.values())))
    words = {BASE: "without LoRA", "stacked": "with LoRA (stacked)"}
    return table(("prompt", "runs", *(words.get(name, name) for name in names)), lines)


def control_line(analysis: Analysis) -> str:
    if analysis.control is None:
        return "There is no control (base against base) among the conditions."
    if not analysis.control:
        return "**The control (base against base) does not cover 1: the machine was too noisy, or too busy, to trust the ratios.**"
    comparison = analysis.row(CONTROL).comparison
    if comparison and comparison.verdict == "equivalent":
        return "The control (base against base) covers 1, as it must, and is within the margin."
    return "The control (base against base) covers 1, as it must, but not within the margin: small differences cannot be told apart here."


def markdown(result: Result) -> str:
    """The whole report."""
    analysis = analyse(result)
    parts = [
        "# What the adapter costs",
        subject_line(result),
        "" if result.complete else f"**Interrupted: {blocks(result)} of {result.config.planned} blocks were measured.**",
        table(HEADER, timing_rows(result, analysis)) if analysis else "Fewer than two blocks were measured: no ratios.",
        control_line(analysis) if analysis else "",
        method(result),
        f"## The time of a run of {result.config.images} pictures, m:ss.d, medians" if analysis and result.config.runs else "",
        published(result, analysis) if analysis and result.config.runs else "",
        "## Ours and the reference" if analysis and analysis.pairs else "",
        table(PAIRS, pair_rows(analysis)) if analysis and analysis.pairs else "",
        "## Where the time goes, medians" if analysis else "",
        table(PHASES, phase_rows(result, analysis)) if analysis else "",
        "## Putting an adapter on and off",
        table(HANDLING, handling_rows(result)),
        "## Checked before the clock started",
        "\n".join(f"- {check.law}: {check.found}" for check in result.gate),
        "## Conditions and environment",
        "\n".join(f"- **{name}**: {CONDITIONS[name].meaning}" for name in measured(result)),
        "\n".join(f"- {key}: {value}" for key, value in flat(result.environment)),
        f"Load during the samples: {load_line(result)}." if result.samples else "",
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
that was declared beforehand. Processor time is the same ratio of the time that the process itself had on all cores: other
programs hardly touch it. *Slower*, *faster*: the interval leaves 1 out. Peak memory is
{memory}, taken in drawings of its own."""


def method(result: Result) -> str:
    cuda = result.environment["device"].startswith("cuda")
    return METHOD.format(
        confidence=100 * result.config.confidence,
        level=100 * (1 - result.config.confidence),
        margin=100 * result.config.margin,
        memory="PyTorch's on the GPU" if cuda else "the resident set of the whole process, libraries included",
    )


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


def flat(environment: dict[str, Any]) -> list[tuple[str, str]]:
    inner = {k: ", ".join(f"{a} {b}" for a, b in v.items()) if isinstance(v, dict) else v for k, v in environment.items()}
    return [(key.replace("_", " "), str(value)) for key, value in inner.items() if value not in ("", None)]
