"""sdlora adapter: look into adapter files and translate them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sdlora.adapter import Adapter

commands = typer.Typer(help="Look into adapter files and translate them.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(commands, name="adapter")


@commands.command()
def describe(
    file: Annotated[Path, typer.Argument(help="An adapter, .safetensors.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Layers, ranks and parameters of FILE, beside those of the full matrices; and what its header says.

    Example: sdlora adapter describe style.safetensors
    """
    from sdlora import files

    adapter = files.read(file)
    facts = _facts(adapter, files.format_of(file))
    if json:
        from json import dumps

        typer.echo(dumps(facts, indent=2, ensure_ascii=False))
    else:
        _print(file, facts)


@commands.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An adapter in either format.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    format: Annotated[str, typer.Option(help="kohya (A1111, ComfyUI, Forge) or peft (diffusers).")],
    base: Annotated[
        str | None,
        typer.Option(help="Base model, a name or a folder: kohya's layer names can only be read with it. Default: the file's own."),
    ] = None,
) -> None:
    """Write the adapter IN as OUT in another format, without loss.

    Example: sdlora adapter convert style.safetensors style-peft.safetensors --format peft
    """
    from sdlora import files

    adapter = _named(source, base)
    files.save(adapter, target, format)
    typer.echo(f"{target}: {len(adapter.layers)} layers, {format}")


def _named(source: Path, base: str | None) -> "Adapter":
    """The adapter with dotted layer names. Only kohya's keys need the base model for that, and only its configuration."""
    from sdlora import files, models

    if files.format_of(source) == "peft":
        return files.read(source)
    base = base or files.read_metadata(source).get("sdlora.base") or "emoji"
    return files.load(source, models.skeleton(base))


def _facts(adapter: "Adapter", format: str) -> dict[str, Any]:
    from sdlora.adapter import counts

    layers = counts(adapter)
    full = sum(layer.full for layer in layers)
    return {
        "format": format,
        "layers": [
            {
                "name": layer.name,
                "shape": list(layer.shape),
                "rank": layer.rank,
                "alpha": layer.alpha,
                "parameters": layer.parameters,
                "full": layer.full,
                "ratio": layer.ratio,
            }
            for layer in layers
        ],
        "parameters": adapter.parameters,
        "full": full,
        "ratio": adapter.parameters / full,
        "metadata": dict(sorted(adapter.metadata.items())),
    }


def _print(file: Path, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", "weight", "rank", "α", "parameters", "full", "ratio", title=f"{file} ({facts['format']})")
    for column in table.columns[1:]:
        column.justify = "right"
    for layer in facts["layers"]:
        table.add_row(layer["name"], " × ".join(map(str, layer["shape"])), str(layer["rank"]), f"{layer['alpha']:g}", *_sizes(layer))
    table.add_section()
    table.add_row(f"{len(facts['layers'])} layers", "", "", "", *_sizes(facts))
    console = Console()
    console.print(table)
    for key, value in facts["metadata"].items():
        console.print(f"{key}: {value if len(value) <= 100 else value[:100] + '…'}", markup=False, highlight=False)


def _sizes(counted: dict[str, Any]) -> tuple[str, str, str]:
    return f"{counted['parameters']:,}", f"{counted['full']:,}", f"{counted['ratio']:.2%}"
