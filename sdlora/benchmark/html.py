"""A benchmark as one HTML file that needs nothing else: tables, plots, and the pictures of every condition side by side."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from sdlora.benchmark import limits, report
from sdlora.benchmark.conditions import CONDITIONS
from sdlora.benchmark.result import Analysis, Pictured, Result

LONG = 24  # characters of a cell that may be broken into lines
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
td { vertical-align: top; } th, td.long { white-space: normal; } td.long { min-width: 13rem; } th { vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
img.plot { width: 100%; min-width: 44rem; background: white; border-radius: 4px; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.6rem, 1fr)); gap: .7rem; }
figure { margin: 0; max-width: 14rem; } figure img { width: 100%; border: 1px solid var(--line); image-rendering: auto; }
figcaption { font-size: .8rem; text-align: center; }
.note { padding: .5rem .8rem; background: var(--soft); border-radius: 4px; }
"""


def page(result: Result, analysis: Analysis | None, folder: Path, plot: Path | None) -> str:
    """`folder` is where the paths of the pictures start; one that is gone is said to be."""
    config = result.config
    parts = ["<h1>What the adapter costs</h1>", paragraph(report.subject_line(result))]
    if not result.complete:
        parts.append(paragraph(report.interrupted(result), "note"))
    if analysis:
        parts += [
            table(report.HEADER, report.timing_rows(result, analysis)),
            *section("Step by step, in turns", table(report.TURNS, rows) if (rows := report.turn_rows(analysis)) else ""),
            paragraph(report.control_line(analysis).replace("*", ""), "note"),
            image(plot, "the ratio of every pair, its interval and the margin; all times in their order", "plot") if plot else "",
            paragraph(report.drift_line(analysis).replace("*", ""), "note") if report.drift_line(analysis) else "",
            *section("Aimed at", aims(result, analysis)),
            *section("The time of a run, m:ss.d", markdown_table(report.published(result, analysis)) if config.runs else ""),
            *section("Ours and the reference", table(report.PAIRS, report.pair_rows(analysis)) if analysis.pairs else ""),
            *section("Where the time goes, medians", table(report.PHASES, report.phase_rows(result, analysis))),
            *section("The arithmetic of a step", table(report.WORK, counts) if (counts := report.work_rows(result, analysis)) else ""),
        ]
    parts += [
        *section(
            "Pictures, one prompt and seed under every condition", "".join(strip(result, prompt, folder) for prompt in config.prompts)
        ),
        *section("Handling an adapter", table(report.HANDLING, report.handling_rows(result))),
        table(report.HANDLED, report.handled_rows(analysis)) if analysis and analysis.handling else "",
        *section("Checked before the clock started", bullets([f"{check.law}: {check.found}" for check in result.gate])),
        *section("Method", paragraph(report.method(result).replace("*", ""))),
        *section("Conditions", bullets([f"{name}: {CONDITIONS[name].meaning}" for name in report.measured(result)])),
        *section("Environment", bullets([f"{key}: {value}" for key, value in report.flat(result.environment)])),
        paragraph(f"Load during the samples: {report.load_line(result)}."),
    ]
    return document("What the adapter costs", parts)


def aims(result: Result, analysis: Analysis) -> str:
    rows, notes = report.goal_rows(analysis.goals, analysis.ceilings), list(limits.lines(result, analysis))
    reasons = paragraph("Where the time of what is not met goes:") + bullets(notes) if notes else ""
    return table(report.GOALS, rows) + reasons if rows else ""


def document(title: str, parts: Sequence[str]) -> str:
    view = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head = f"{view}<title>{escape(title)}</title><style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(filter(None, parts)) + "\n</body></html>\n"


def section(title: str, content: str) -> list[str]:
    return [f"<h2>{escape(title)}</h2>", content] if content else []


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def bullets(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...], tag: str) -> str:
        kinds = (' class="long"' if len(cell) > LONG else "" for cell in cells)
        return "<tr>" + "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True)) + "</tr>"

    return f'<div class="wide"><table>{line(header, "th")}{"".join(line(row, "td") for row in rows)}</table></div>'


def markdown_table(text: str) -> str:
    """The same table from what `report.table` wrote."""
    lines = [tuple(cell.strip().replace("\\|", "|") for cell in line[2:-2].split(" | ")) for line in text.splitlines()]
    return table(lines[0], lines[2:])


def strip(result: Result, prompt: str, folder: Path) -> str:
    """The pictures of one prompt."""
    found = [one for one in result.pictures if one.prompt == prompt]
    if not found:
        return ""
    figures = "".join(figure(one, folder) for one in found)
    return f"{paragraph(f'{prompt} · seed {found[0].seed}')}<div class='row'>{figures}</div>"


def figure(one: Pictured, folder: Path) -> str:
    return f"<figure>{image(folder / one.file, one.condition)}<figcaption>{escape(one.condition)}</figcaption></figure>"


def image(path: Path, words: str, kind: str = "picture") -> str:
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return paragraph(f"{path.name} is gone", "note")
    picture = f'<img class="{kind}" alt="{escape(words)}" src="data:image/png;base64,{data}">'
    return f'<div class="wide">{picture}</div>' if kind == "plot" else picture
