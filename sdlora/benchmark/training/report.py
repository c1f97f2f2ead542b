"""A training benchmark in words: Markdown and HTML."""

from html import escape
from pathlib import Path

from sdlora.benchmark import html
from sdlora.benchmark import report as words
from sdlora.benchmark.training.config import CACHED, CONTROL, OURS, PLAIN
from sdlora.benchmark.training.result import Analysis, Result, analyse

TITLE = "What a training step costs"
HEADER = ("contender", "ms per step", "images/s", "peak of the device, MiB", "peak of the process, MiB")
PAIRS = (
    "contender",
    "against",
    "ratio of time",
    "interval",
    "median ratio",
    "times as fast",
    "verdict",
    "ratio of processor time",
)
WORK = ("contender", "GFLOP a step", "against the first", "MB read and written", "against the first", "time against the first")
CONTENDERS = {
    OURS: "sdlora.training.steps, latents and embeddings cached, as `sdlora train` goes",
    CONTROL: "the same once more: its ratio has to be 1, or the machine is too noisy",
    PLAIN: "train/plain_loop.py: reads, encodes pictures and captions in every step, as diffusers' script does",
    CACHED: "the same with latents and embeddings made beforehand",
}
METHOD = """Every block lets all contenders make {steps} optimiser steps under the clock, in a balanced random order, each after
{warmup} not timed. All train the same adapter from the same first weights on the same pictures, noise and timesteps; no time is taken
before the first losses agree. A ratio is the geometric mean over blocks of time over time, its {confidence:g} % interval a studentised
bootstrap over blocks. *Equivalent*: two one-sided tests at {level:.3g} %, Student's and the bootstrap's, put the ratio within the margin
of {margin:g} % that was declared beforehand. Peak memory is taken in a process of its own for each contender, while steps are made.
GFLOP count products, convolutions and attention, forwards and backwards; MB are read and written if every operation has its operands
from memory."""


def blocks(result: Result) -> int:
    return len({sample.block for sample in result.samples})


def subject(result: Result) -> str:
    config = result.config
    size = f"{config.resolution} pixels" if config.resolution else "its own size"
    return (
        f"Base {Path(config.base).name} at {size}, batch {config.batch_size}, rank {config.rank} on attention "
        f"({result.parameters:,} parameters), {config.precision} on {result.environment['device']}. {result.environment['date']}."
    )


def rows(analysis: Analysis) -> list[tuple[str, ...]]:
    peaks = [(row.peak.device, row.peak.host) if row.peak else (None, None) for row in analysis.rows]
    return [
        (row.contender, f"{1e3 * row.step:.1f}", f"{row.images_per_second:.2f}", *(words.mebibytes(peak) for peak in both))
        for row, both in zip(analysis.rows, peaks, strict=True)
    ]


def pair_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    found = ((pair, pair.comparison) for pair in analysis.pairs)
    return [
        (p.contender, p.against, *words.ratio_cells(c)[:3], f"{1 / c.ratio:.2f}", words.verdict(c), words.processor(p.processor))
        for p, c in found
    ]


def goal_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """Times, and peaks of memory."""
    memory = [(f"{one.name}, peak memory", f"at most {one.limit:g}", f"{one.ratio:.3f}", "", one.outcome) for one in analysis.memory]
    return [*words.goal_rows(analysis.goals), *memory]


def brief(analysis: Analysis) -> list[words.Table]:
    """What fits into a terminal."""
    pairs = [(*line[:4], line[5], pair.comparison.verdict) for pair, line in zip(analysis.pairs, pair_rows(analysis), strict=True)]
    goals = [(words.GOALS, lines)] if (lines := goal_rows(analysis)) else []
    return [(HEADER, rows(analysis)), ((*PAIRS[:4], PAIRS[5], "verdict"), pairs), *goals]


def work_rows(result: Result, analysis: Analysis) -> list[tuple[str, ...]]:
    times, first = {row.contender: row.step for row in analysis.rows}, result.work[0]
    return [
        (
            one.condition,
            *(f"{one.flops / 1e9:.4g}", f"{one.flops / first.flops:.3f}", f"{one.bytes / 1e6:.4g}", f"{one.bytes / first.bytes:.3f}"),
            f"{times[one.condition] / times[first.condition]:.3f}",
        )
        for one in result.work
    ]


def control_line(analysis: Analysis) -> str:
    if analysis.control is None:
        return "There is no control (ours against ours) among the contenders."
    covers = "covers 1, as it must" if analysis.control else "does not cover 1: the machine was too noisy, or too busy, to trust the ratios"
    return f"The control (ours against ours) {covers}."


def method(result: Result) -> str:
    config = result.config
    numbers = {"confidence": 100 * config.confidence, "level": 100 * (1 - config.confidence), "margin": 100 * config.margin}
    return METHOD.format(steps=config.steps, warmup=config.warmup, **numbers)


def interrupted(result: Result) -> str:
    return f"Interrupted: {blocks(result)} of {result.config.blocks} blocks were measured."


def checks(result: Result) -> list[str]:
    return [f"{check.law}: {check.found}" for check in result.gate]


def surroundings(result: Result) -> list[str]:
    named = [f"{name}: {CONTENDERS[name]}" for name in dict.fromkeys(result.config.contenders)]
    loads = [sample.load for sample in result.samples if sample.load is not None]
    load = [f"load during the samples: {min(loads):g} … {max(loads):g} processes"] if loads else []
    return [*named, *(f"{key}: {value}" for key, value in words.flat(result.environment)), *load]


def tables(result: Result, analysis: Analysis) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Title, header and rows of each."""
    goals = [("Aimed at", words.GOALS, lines)] if (lines := goal_rows(analysis)) else []
    return [
        ("", HEADER, rows(analysis)),
        ("Ours and the reference", PAIRS, pair_rows(analysis)),
        *goals,
        ("The arithmetic of a step", WORK, work_rows(result, analysis)),
    ]


def markdown(result: Result) -> str:
    """The whole report."""
    analysis = analyse(result)
    parts = [f"# {TITLE}", subject(result), f"**{interrupted(result)}**" if not result.complete else ""]
    for title, header, lines in tables(result, analysis) if analysis else []:
        parts += [f"## {title}" if title else "", words.table(header, lines)]
    parts += [control_line(analysis) if analysis else "Fewer than two blocks were measured: no ratios.", method(result)]
    parts += ["## Checked before the clock started", "\n".join(f"- {line}" for line in checks(result))]
    parts += ["## Contenders and environment", "\n".join(f"- {line}" for line in surroundings(result))]
    return "\n\n".join(filter(None, parts)) + "\n"


def page(result: Result, plot: Path | None) -> str:
    """The same as one HTML file."""
    analysis = analyse(result)
    parts = [f"<h1>{escape(TITLE)}</h1>", html.paragraph(subject(result))]
    parts += [html.paragraph(interrupted(result), "note")] if not result.complete else []
    if analysis:
        for title, header, lines in tables(result, analysis):
            parts += html.section(title, html.table(header, lines)) if title else [html.table(header, lines)]
        parts.append(html.paragraph(control_line(analysis), "note"))
    parts += [html.image(plot, "the ratio of every pair of samples, its interval and the margin", "plot")] if plot else []
    parts += html.section("Checked before the clock started", html.bullets(checks(result)))
    parts += html.section("Method", html.paragraph(method(result).replace("*", "")))
    parts += html.section("Contenders and environment", html.bullets(surroundings(result)))
    return html.document(TITLE, parts)
