"""sdlora dataset: look at an image folder before a training does."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sdlora.data.buckets import Frames, Grid
    from sdlora.data.check import Report
    from sdlora.training import TrainConfig

commands = typer.Typer(help="Look at an image folder before a training does.", no_args_is_help=True)
SHOWN = 8  # files of a finding in the table; --json has all
TAGS = 20


def register(app: typer.Typer) -> None:
    app.add_typer(commands, name="dataset")


@commands.command()
def check(
    source: Annotated[Path, typer.Argument(metavar="FOLDER|FILE.toml", help="An image folder, or the settings of a training.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Settings, as for sdlora train.")] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all that is found as JSON; - prints it.")] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw how every picture will be cropped.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 if anything is found.")] = False,
) -> None:
    """Corrupt, tiny, duplicate and blank pictures, missing and overlong captions, and what each bucket cuts off. Changes nothing.

    Example: sdlora dataset check datasets/robot base=emoji trigger=zorbot --sheet crops.png
    """
    from sdlora import models
    from sdlora.data import buckets
    from sdlora.data import check as checks

    config = _settings(source, settings or [])
    found = models.opened(config.base, **config.reading)
    base = buckets.grid(config.base if config.base in models.BUILT_IN else found.name, found.configs["unet"], found.configs["vae"])
    how = buckets.frames(config, base)
    with _bar() as progress:
        report = checks.inspect(config, base, how, models.tokenizers(found), progress)
    if json is None or str(json) != "-":
        _print(report)
    if json is not None:
        _write(report, json)
    if sheet is not None:
        for path in _draw(config, how, base, sheet):
            typer.echo(f"crops: {path}", err=str(json) == "-")
    if strict and report.grave:
        raise typer.Exit(2)


def _settings(source: Path, settings: list[str]) -> "TrainConfig":
    from sdlora import config
    from sdlora.training import TrainConfig

    if source.suffix.lower() == ".toml":
        return config.load(TrainConfig, source, settings)
    start = {"images": str(source), "output": "runs/check", **_called(source, settings)}  # nothing is written there
    return config.load(TrainConfig, None, settings, start)


def _called(folder: Path, settings: list[str]) -> dict[str, str]:
    """The caption that `sdlora train FOLDER` gives where no picture has one, and the settings give none."""
    from sdlora.errors import SdloraError
    from sdlora.training import simple

    if any(text.partition("=")[0].strip() == "caption" for text in settings):
        return {}
    try:
        found = simple.caption(folder) if folder.is_dir() else None
    except SdloraError:  # what is wrong is found below
        found = None
    if found is None:
        return {}
    typer.echo(f"no captions: sdlora train calls every picture {found!r}", err=True)
    return {"caption": found}


def _bar() -> Any:
    """A progress bar on a terminal, nothing elsewhere; gives a function (number, total)."""
    from collections.abc import Iterator
    from contextlib import contextmanager

    @contextmanager
    def shown() -> Iterator[Any]:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("looking at the pictures")
            yield lambda number, total: bar.update(task, completed=number, total=total)

    return shown()


def _draw(config: "TrainConfig", how: "Frames", base: "Grid", path: Path) -> list[Path]:
    """The crops that a training with these settings makes, drawn."""
    from sdlora.data import crops, folder, pictures
    from sdlora.data.folder import Example
    from sdlora.errors import SdloraError
    from sdlora.training import sources

    if path.suffix.lower() not in (".png", ".jpg", ".webp"):
        raise SdloraError(f"cannot draw into {path}; give a name that ends in .png")
    readable = [entry for entry in folder.entries(config) if pictures.problem(entry.path) is None]
    examples = [Example(entry.path, ("",), entry.repeats) for entry in readable]
    shown: dict[Path, list[Any]] = {}
    for planned in sources.planned(examples, config, how, config.batch_size):
        shown.setdefault(planned.example.path, []).extend(planned.crops)
    title = f"{config.images.name} for {base.name}: what is bright is seen"
    return crops.write(list(shown.items()), path, title, config.background)


def _write(report: "Report", path: Path) -> None:
    from json import dumps

    from sdlora import texts

    text = dumps(report.plain(), indent=2, ensure_ascii=False)
    if str(path) == "-":
        typer.echo(text)
        return
    texts.write(path, text + "\n")


def _print(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if report.findings:
        table = Table("what", "how many", "where", title=f"{report.folder}: {len(report.grave) or 'no'} grave findings")
        for kind, files, text in _rows(report):
            table.add_row(kind, str(len(files)), _listed(files, text))
        console.print(table)
    sizes = Table("pixels", "bucket", "pictures", "an epoch", "cut off", "at most", "of", "enlarged")
    for b in report.buckets:
        counts = f"{b.width} × {b.height}", str(b.images), str(b.showings), f"{b.lost:.1%}", f"{b.worst:.1%}"
        sizes.add_row(str(b.resolution), *counts, b.worst_file if b.worst else "", str(b.enlarged or ""))
    console.print(sizes)
    for line in _lines(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _rows(report: "Report") -> list[tuple[str, list[str], str]]:
    """One row for all findings of a kind; each group of the same pictures has its own."""
    rows: list[tuple[str, list[str], str]] = []
    for finding in report.findings:
        alone = finding.kind in ("duplicate", "similar", "shared", "trigger")
        if not alone and rows and rows[-1][0] == finding.title:
            rows[-1][1].append(f"{finding.files[0]} ({finding.text})" if finding.text else finding.files[0])
        elif alone:
            rows.append((finding.title, list(finding.files), finding.text))
        else:
            first = [f"{name} ({finding.text})" if finding.text else name for name in finding.files]
            rows.append((finding.title, first, ""))
    return rows


def _listed(files: list[str], text: str) -> str:
    more = f", … and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return (f"{text}: " if text else "") + ", ".join(files[:SHOWN]) + more


def _lines(report: "Report") -> list[str]:
    regular = f", {report.regular} of them class pictures" if report.regular else ""
    lines = [f"{report.images} pictures can be trained on{regular}; none is dropped, since a batch waits until its bucket has filled it"]
    if len(report.folders) > 1 or any(repeats > 1 for _, _, repeats in report.folders):
        lines += [f"  {name}: {count} pictures, {repeats} times an epoch" for name, count, repeats in report.folders]
    lines.append(f"captions: the longest has {report.longest} tokens; {report.chunks * 75} are read ({report.chunks} chunks of 75)")
    if report.tags:
        shown = ", ".join(f"{tag} {count}" for tag, count in report.tags[:TAGS])
        lines.append(f"tags: {shown}{', …' if len(report.tags) > TAGS else ''} ({len(report.tags)} in all)")
    return lines
