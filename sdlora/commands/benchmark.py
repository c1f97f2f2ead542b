"""`sdlora benchmark`: what an adapter costs at generation time, and what a training step costs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sdlora.benchmark.files import Outcome
    from sdlora.config import Model


def register(app: typer.Typer) -> None:
    app.command()(benchmark)


def benchmark(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[train] [FILE.toml] [KEY=VALUE]… | analyse FILE.json | check NEW.json RECORDED.json",
            help="A settings file, and changes to it or to the defaults.",
        ),
    ] = None,
) -> None:
    """Measure what adapters cost: the base, the base again, stacked, fused and stock diffusers with PEFT, in paired blocks.

    Before any time is taken it checks that the adapter acts, that all ways agree and that the base stays as it was.

    \b
    train FILE.toml                a training step instead, beside the plain loop of diffusers and PEFT
    analyse FILE.json              the report of an earlier run anew from its samples, without measuring
    check NEW.json RECORDED.json   whether ours has become slower against the reference than it was; exit code 1 if so

    Example: sdlora benchmark configs/benchmark-emoji.toml adapter=runs/emoji-style/adapter.safetensors blocks=40
    """
    from rich.console import Console

    words, console = settings or [], Console()
    action, rest = (words[0], words[1:]) if words[:1] and words[0] in ACTIONS else ("", words)
    ACTIONS[action](rest, console)


def measure(words: Sequence[str], console: "Console") -> None:
    """An adapter's cost at generation time."""
    from sdlora import benchmark

    carried_out(benchmark.BenchmarkConfig, benchmark.run, words, console)


def train(words: Sequence[str], console: "Console") -> None:
    """A training step's."""
    from sdlora.benchmark import training

    carried_out(training.TrainingBenchmarkConfig, training.run, words, console)


def carried_out(cls: "type[Model]", run: "Callable[..., Outcome[Any, Any]]", words: Sequence[str], console: "Console") -> None:
    chosen = chosen_settings(cls, words)
    with bar(console) as progress:
        outcome = run(chosen, progress=progress)
    show(outcome, console)
    if not outcome.result.complete:
        raise typer.Exit(130)


def analyse(words: Sequence[str], console: "Console") -> None:
    """The report of an earlier run, of either kind."""
    from sdlora import benchmark
    from sdlora.benchmark import files, training

    (path,) = only(words, "analyse", "the benchmark.json of an earlier run")
    kind = training if files.kind(path) == training.FORMAT else benchmark
    show(kind.analyse(path), console)


def check(words: Sequence[str], console: "Console") -> None:
    """Whether a ratio has become worse."""
    from sdlora.benchmark import compared

    new, recorded = only(words, "check", "the new benchmark.json and the recorded one", 2)
    found = compared.compare(new, recorded)
    for one in found:
        console.print(one.line, markup=False, highlight=False, soft_wrap=True)
    if any(one.worse for one in found):
        typer.echo("a ratio is worse than the recorded one, beyond both intervals", err=True)
        raise typer.Exit(1)


ACTIONS = {"": measure, "train": train, "analyse": analyse, "check": check}


def chosen_settings(cls: "type[Model]", words: Sequence[str]) -> "Model":
    from sdlora import config

    has_file = bool(words) and ("=" not in words[0] or Path(words[0]).exists())
    return config.load(cls, words[0] if has_file else None, words[1:] if has_file else words)


def only(words: Sequence[str], action: str, what: str, count: int = 1) -> list[Path]:
    """The files behind `action`."""
    from sdlora.errors import SdloraError

    if len(words) != count:
        number = "one file" if count == 1 else f"{count} files"
        raise SdloraError(f"benchmark {action} takes {number}, and got {len(words)}; give {what}")
    return [Path(word) for word in words]


@contextmanager
def bar(console: "Console") -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar over the blocks; yields what moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("blocks"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("loading", total=None)
        yield lambda done, total, words: progress.update(task, completed=done, total=total, description=words)


def show(outcome: "Outcome[Any, Any]", console: "Console") -> None:
    """The gate, the tables and where the files are."""
    from sdlora.benchmark import report
    from sdlora.benchmark.result import Result
    from sdlora.benchmark.training import report as training_report

    result, analysis = outcome.result, outcome.analysis
    of_drawing = isinstance(result, Result)
    words: Any = report if of_drawing else training_report
    for check in result.gate:
        console.print(f"[green]✓[/] {check.law}: {check.found}", highlight=False)
    if not result.complete:
        console.print(words.interrupted(result), style="yellow")
    if analysis:
        for header, rows in words.brief(result, analysis) if of_drawing else words.brief(analysis):
            console.print(table(header, rows))
        console.print(words.control_line(analysis).replace("*", ""), style="dim" if analysis.control else "yellow")
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
