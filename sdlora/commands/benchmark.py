"""`sdlora benchmark`: what an adapter costs at generation time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sdlora.benchmark import Outcome


def register(app: typer.Typer) -> None:
    app.command()(benchmark)


def benchmark(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE.toml] [KEY=VALUE]… | analyse FILE.json", help="A settings file, and changes to it or to the defaults."
        ),
    ] = None,
) -> None:
    """Measure what adapters cost: the base, the base again, stacked, fused and stock diffusers with PEFT, in paired blocks.

    Before any time is taken it checks that the adapter acts, that all ways agree and that the base stays as it was.
    `analyse FILE.json` makes the report of an earlier run anew from its samples, without measuring.

    Example: sdlora benchmark configs/benchmark-emoji.toml adapter=runs/emoji-style/adapter.safetensors blocks=40
    """
    from rich.console import Console

    from sdlora import benchmark, config

    words, console = settings or [], Console()
    if words[:1] == ["analyse"]:
        show(benchmark.analyse(only(words[1:])), console)
        return
    has_file = bool(words) and ("=" not in words[0] or Path(words[0]).exists())
    chosen = config.load(benchmark.BenchmarkConfig, words[0] if has_file else None, words[1:] if has_file else words)
    with bar(console) as progress:
        outcome = benchmark.run(chosen, progress=progress)
    show(outcome, console)
    if not outcome.result.complete:
        raise typer.Exit(130)


def only(words: Sequence[str]) -> Path:
    """The one file behind `analyse`."""
    from sdlora.errors import SdloraError

    if len(words) != 1:
        raise SdloraError(f"benchmark analyse takes one file, and got {len(words)}; give the benchmark.json of an earlier run")
    return Path(words[0])


@contextmanager
def bar(console: "Console") -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar over the blocks; yields what moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("blocks"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("loading", total=None)
        yield lambda done, total, words: progress.update(task, completed=done, total=total, description=words)


def show(outcome: "Outcome", console: "Console") -> None:
    """The gate, the tables and where the files are."""
    from sdlora.benchmark import report

    result, analysis = outcome.result, outcome.analysis
    for check in result.gate:
        console.print(f"[green]✓[/] {check.law}: {check.found}", highlight=False)
    if not result.complete:
        console.print(f"interrupted: {report.blocks(result)} of {result.config.planned} blocks were measured", style="yellow")
    if analysis:
        console.print(table(*report.brief(result, analysis)))
        if analysis.pairs:
            console.print(table(*report.brief_pairs(analysis)))
        console.print(table(report.HANDLING, report.handling_rows(result)))
        console.print(report.control_line(analysis).replace("*", ""), style="dim" if analysis.control else "yellow")
    for path in filter(None, (outcome.markdown, outcome.html, outcome.json, outcome.plot)):
        typer.echo(str(path))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    from rich.table import Table

    result = Table(*header)
    for column in result.columns[1:]:
        column.justify = "right"
    for row in rows:
        result.add_row(*row)
    return result
