"""sdlora cache: what is kept of encoded pictures and captions, and how to get rid of it."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

commands = typer.Typer(help="What is kept of encoded pictures and captions, and how to get rid of it.", invoke_without_command=True)
SPANS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

Folder = Annotated[Path | None, typer.Option(help="Another cache than the one that all runs share.")]


def register(app: typer.Typer) -> None:
    app.add_typer(commands, name="cache")


@commands.callback()
def overview(context: typer.Context) -> None:
    """What is kept of encoded pictures and captions, and how to get rid of it.

    Example: sdlora cache
    """
    if context.invoked_subcommand is None:
        show()


@commands.command()
def show(folder: Folder = None, json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """How much of what is kept where, and when it was last used.

    Example: sdlora cache show
    """
    place = _place(folder)
    facts = _facts(place)
    if json:
        from json import dumps

        typer.echo(dumps({"folder": str(place), "kinds": facts}, indent=2))
    else:
        _print(place, facts)


@commands.command()
def prune(
    folder: Folder = None,
    older: Annotated[str | None, typer.Option(metavar="30d", help="What nobody has used for so long: 12h, 30d, 4w.")] = None,
    to: Annotated[str | None, typer.Option(metavar="2GB", help="The longest unused, until so much remains; 0 for everything.")] = None,
) -> None:
    """Delete what nobody has used for long; what a run needs again, it encodes again. Without options: what no version can use.

    Example: sdlora cache prune --older 30d --to 2GB
    """
    from sdlora.data import cache
    from sdlora.data.sizes import readable, size

    place = _place(folder)
    gone = cache.outdated(list(cache.entries(place)), seconds(older) if older else None, size(to) if to else None)
    freed = cache.remove(gone)
    typer.echo(f"{place}: {len(gone)} entries deleted, {readable(freed)} freed")


def seconds(text: str) -> float:
    """30d -> 2592000. SdloraError for what is no span of time."""
    from sdlora.errors import SdloraError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhdw])", text.strip())
    if not match:
        raise SdloraError(f"--older is {text!r}; write a number and m, h, d or w, such as 30d")
    return float(match[1]) * SPANS[match[2]]


def _place(folder: Path | None) -> Path:
    from sdlora.data import cache
    from sdlora.data.settings import SHARED
    from sdlora.errors import SdloraError

    place = cache.folder_of(SHARED) if folder is None else folder
    assert place is not None
    if folder is not None and not folder.is_dir():
        raise SdloraError(f"there is no folder {folder}; leave it out for the one that all trainings share")
    return place


def _facts(place: Path) -> dict[str, Any]:
    """Kind -> how many, how large, last and longest ago used."""
    from datetime import datetime

    from sdlora.data import cache

    kept = list(cache.entries(place))
    result = {}
    for kind in sorted({one.kind for one in kept}):
        own = [one for one in kept if one.kind == kind]
        first, last = (datetime.fromtimestamp(pick(one.used for one in own)).isoformat(" ", "minutes") for pick in (min, max))
        result[kind] = {"entries": len(own), "bytes": sum(one.bytes for one in own), "longest_unused": first, "last_used": last}
    return result


def _print(place: Path, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from sdlora.data.sizes import readable

    table = Table("kind", "entries", "size", "longest unused since", "last used", title=str(place))
    for kind, own in facts.items():
        table.add_row(kind, f"{own['entries']:,}", readable(own["bytes"]), own["longest_unused"], own["last_used"])
    table.add_section()
    table.add_row("all", f"{sum(f['entries'] for f in facts.values()):,}", readable(sum(f["bytes"] for f in facts.values())), "", "")
    Console().print(table)
