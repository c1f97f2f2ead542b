"""sdlora adapter: look into adapter files, translate them, and take parts out of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from sdlora.files import Report

commands = typer.Typer(help="Look into adapter files, translate them, and take parts out of them.", no_args_is_help=True)
SHOWN = 100  # characters of a header's entry in the table


def register(app: typer.Typer) -> None:
    app.add_typer(commands, name="adapter")


@commands.command()
def describe(
    file: Annotated[Path, typer.Argument(help="An adapter: a file, or the folder that PEFT or diffusers saved it in.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON, with every layer, instead of a table.")] = False,
    layers: Annotated[bool, typer.Option("--layers", help="A row for every layer instead of every block.")] = False,
) -> None:
    """What FILE is made for and by whom; its ranks, parameters and norms by block; its trigger words and header.

    Example: sdlora adapter describe style.safetensors
    """
    from sdlora.files import describe

    facts = describe(file)
    if json:
        from json import dumps

        typer.echo(dumps(facts, indent=2, ensure_ascii=False))
    else:
        _print(facts, layers)


@commands.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An adapter in any dialect.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    format: Annotated[str, typer.Option(help="kohya (A1111, ComfyUI, Forge), diffusers, or peft (diffusers today).")],
    base: Annotated[
        str | None,
        typer.Option(help="Base model to hold the adapter against: every layer has to fit, and 1 × 1 convolutions get its shape."),
    ] = None,
) -> None:
    """Write the adapter IN as OUT in another format, without loss.

    Example: sdlora adapter convert style.safetensors style-peft.safetensors --format peft
    """
    from sdlora import files, models

    _new(target)
    adapter, report = files.load_reported(source, models.skeleton(base)) if base is not None else files.read_reported(source)
    _nothing_lost(source, report)
    files.save(adapter, target, format)
    typer.echo(f"{target}: {len(adapter.layers)} layers, from {report.dialect} to {format}")
    _left_out(report)


@commands.command()
def split(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An adapter in any dialect.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file for the layers that are chosen.")],
    blocks: Annotated[
        list[str],
        typer.Option(metavar="PATTERN", help="Which layers: unet.up, text_encoder, '*.attn2.*', b-lora-content, b-lora-style. Repeatable."),
    ],
    rest: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all other layers there.")] = None,
    format: Annotated[str, typer.Option(help="kohya (A1111, ComfyUI, Forge), diffusers, or peft (diffusers today).")] = "kohya",
) -> None:
    """Take the layers of a pattern out of the adapter IN and write them as an adapter of their own; its header says so.

    Example: sdlora adapter split blora.safetensors style.safetensors --blocks b-lora-style --rest content.safetensors
    """
    from sdlora import files
    from sdlora.errors import SdloraError
    from sdlora.files.parts import divided

    for path in (target, rest):
        if path is not None:
            _new(path)
    if rest is not None and rest.absolute() == target.absolute():
        raise SdloraError(f"OUT and --rest are both {target}; give two names")
    adapter, report = files.read_reported(source)
    _nothing_lost(source, report)
    part, others = divided(adapter, blocks, source)
    if rest is not None and not others.layers:
        raise SdloraError(f"{', '.join(blocks)} are all layers of {source}; nothing is left for {rest}")
    for path, piece in ((target, part), (rest, others)):
        if path is not None:
            files.save(piece, path, format)
            typer.echo(f"{path}: {len(piece.layers)} of {len(adapter.layers)} layers")
    _left_out(report)


def _new(path: Path) -> None:
    """SdloraError for a file that cannot be written, or is there."""
    from sdlora.errors import SdloraError

    if path.suffix.lower() != ".safetensors":
        raise SdloraError(f"cannot write {path}: give a name that ends in .safetensors")
    if path.exists():
        raise SdloraError(f"{path} is there already; give another name, or remove it")


def _nothing_lost(source: Path, report: "Report") -> None:
    """SdloraError for a file with tensors that are no part of a LoRA."""
    from sdlora.errors import SdloraError

    if report.unknown:
        raise SdloraError(
            f"{source}: {len(report.unknown)} tensors would be lost, for example {report.unknown[0]}; they are no part of a LoRA"
        )


def _left_out(report: "Report") -> None:
    for word in report.embeddings:
        typer.echo(f"left out: the embedding of {word!r}, which no format but OneTrainer's holds")


def _print(facts: dict[str, Any], layers: bool) -> None:
    from rich.console import Console

    console = Console()
    for line in _summary(facts):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_layers(facts) if layers else _blocks(facts))
    for key, value in facts["metadata"].items():
        shown = value if len(value) <= SHOWN else value[:SHOWN] + "…"
        console.print(f"{key}: {shown}", markup=False, highlight=False, soft_wrap=True)  # so that a hash stays in one piece


def _summary(facts: dict[str, Any]) -> list[str]:
    layers = ", ".join(f"{component} {number}" for component, number in facts["components"].items())
    lines = [
        f"{facts['file']}: {facts['kind']} in {facts['dialect']}'s keys, {', '.join(facts['precisions'])}",
        f"made for {facts['made_for'] or 'a model that it does not tell'} by {facts['trainer'] or 'a program that it does not tell'}",
        f"{len(facts['layers'])} layers: {layers}",
        f"rank {_tally(facts['ranks'])}; α {_tally(facts['alphas'])}",
    ]
    if facts["header_family"] not in (None, facts["family"]):
        lines.append(f"its header says {facts['header_family']}, its layers {facts['family']}: the layers are right")
    if facts["triggers"]:
        lines.append(f"trigger words: {', '.join(facts['triggers'])}")
    if facts["embeddings"]:
        lines.append(f"bundled embeddings, which are not used: {', '.join(facts['embeddings'])}")
    if facts["unknown"]:
        lines.append(
            f"{len(facts['unknown'])} tensors of no layer: {', '.join(facts['unknown'][:3])}{' …' if len(facts['unknown']) > 3 else ''}"
        )
    return lines


def _tally(counted: dict[float, int]) -> str:
    """`8`, or where there are several `4 (64 layers), 8 (128 layers)`."""
    if len(counted) == 1:
        return f"{next(iter(counted)):g}"
    return ", ".join(f"{value:g} ({number} layers)" for value, number in counted.items())


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(*columns)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _blocks(facts: dict[str, Any]) -> "Table":
    table = _table("block", "layers", "rank", "parameters", "‖ΔW‖")
    for block in facts["blocks"]:
        ranks = ", ".join(map(str, block["ranks"]))
        table.add_row(block["name"], str(block["layers"]), ranks, f"{block['parameters']:,}", f"{block['norm']:.4g}")
    table.add_section()
    table.add_row("all", str(len(facts["layers"])), "", f"{facts['parameters']:,} ({facts['ratio']:.2%})", f"{facts['norm']:.4g}")
    return table


def _layers(facts: dict[str, Any]) -> "Table":
    table = _table("layer", "weight", "rank", "α", "parameters", "full", "ratio", "‖ΔW‖")
    for layer in facts["layers"]:
        size = " × ".join(map(str, layer["shape"]))
        table.add_row(layer["name"], size, str(layer["rank"]), f"{layer['alpha']:g}", *_sizes(layer))
    table.add_section()
    table.add_row(f"{len(facts['layers'])} layers", "", "", "", *_sizes(facts))
    return table


def _sizes(counted: dict[str, Any]) -> tuple[str, ...]:
    return f"{counted['parameters']:,}", f"{counted['full']:,}", f"{counted['ratio']:.2%}", f"{counted['norm']:.4g}"
