"""sdlora base: look into base models and translate them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sdlora.checkpoints import Opened

commands = typer.Typer(help="Look into base models and translate them.", no_args_is_help=True)
WRITTEN_BY_OTHERS = (".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx")
SHOWN = 10  # names of tensors in a table; --json has all

SOURCES = "A .safetensors or .ckpt, a folder in diffusers' layout, a built-in name or a Hub id."
Base = Annotated[str, typer.Argument(metavar="BASE", help=SOURCES)]
Vae = Annotated[Path | None, typer.Option(help="A VAE to take instead of the base's own: a file or a folder.")]
Prediction = Annotated[str | None, typer.Option(help="epsilon or v_prediction, where the file does not say or says it wrongly.")]
FamilyName = Annotated[str | None, typer.Option("--family", help="sd1, sd2 or sdxl: an error if the tensors are of another.")]
Config = Annotated[Path | None, typer.Option(help="A folder in diffusers' layout, for a single file of unusual widths.")]


def register(app: typer.Typer) -> None:
    app.add_typer(commands, name="base")


@commands.command()
def describe(
    base: Base,
    rank: Annotated[int, typer.Option(min=1, help="Of the LoRA whose parameters are counted.")] = 8,
    targets: Annotated[str, typer.Option(help="Its targets, with commas between them.")] = "attention",
    vae: Vae = None,
    prediction: Prediction = None,
    family: FamilyName = None,
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Family, prediction type, components, parameters, precision and hash of BASE; and how large a LoRA for it would be.

    Example: sdlora base describe v1-5-pruned-emaonly.safetensors --rank 16 --targets attention,feed_forward
    """
    from sdlora import models

    found = models.opened(base, family=family, prediction=prediction, vae=vae, config=config)
    facts = _facts(found, rank, [target.strip() for target in targets.split(",")])
    if json:
        from json import dumps

        typer.echo(dumps(facts, indent=2, ensure_ascii=False))
    else:
        _print(facts)


@commands.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help=SOURCES)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A name that ends in .safetensors, or a new folder.")],
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; by default every tensor stays as it is.")] = None,
    vae: Vae = None,
    prediction: Prediction = None,
    family: FamilyName = None,
    config: Config = None,
) -> None:
    """Write the base model IN as one file with LDM's names (A1111, ComfyUI, kohya), or as a folder in diffusers' layout.

    Example: sdlora base convert v1-5-pruned-emaonly.safetensors v1-5/
    """
    from sdlora import hardware, models
    from sdlora.checkpoints import folder, single
    from sdlora.errors import SdloraError

    dtype = hardware.dtype(precision) if precision else None
    one = target.suffix.lower() == ".safetensors"
    if target.suffix.lower() in WRITTEN_BY_OTHERS:
        raise SdloraError(f"cannot write {target}: give a name that ends in .safetensors, or a folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SdloraError(f"{target} is there already; give another name, or remove it")
    found = models.opened(source, family=family, prediction=prediction, vae=vae, config=config)
    found.check()
    if one:
        single.export(found, target, dtype)
    else:
        folder.export(found, target, dtype)
    typer.echo(f"{target}: {found.family.title}, {'one file' if one else 'diffusers'}")


def _facts(base: "Opened", rank: int, targets: list[str]) -> dict[str, Any]:
    from dataclasses import asdict

    from sdlora.checkpoints import hashes
    from sdlora.checkpoints.describe import parts

    digest, single = hashes.sha256(base.files), base.path.is_file()
    return {
        "path": str(base.path),
        "family": base.family.name,
        "title": base.family.title,
        "prediction": base.prediction.kind,
        "prediction_found": base.prediction.why,
        "zero_terminal_snr": base.prediction.zero_snr,
        "components": [asdict(part) for part in parts(base)],
        "sha256": digest,
        "short_hash": hashes.short(digest) if single else None,
        "surplus": list(base.surplus),
        "notes": list(base.notes),
        "refusal": _refusal(base),
        "lora": _lora(base, rank, targets),
    }


def _refusal(base: "Opened") -> str | None:
    """Why the base cannot be loaded, None where it can."""
    from sdlora.errors import SdloraError

    try:
        base.check()
    except SdloraError as error:
        return str(error)
    return None


def _lora(base: "Opened", rank: int, targets: list[str]) -> dict[str, Any]:
    """What a LoRA of rank r has: r (in · kernel + out) parameters a layer."""
    from math import prod

    from sdlora.apply.targets import select
    from sdlora.layers import named_layers

    modules = {name: module for name, module in base.modules.items() if name != "vae"}
    layers: dict[str, Any] = dict(named_layers(modules))
    shapes = {name: tuple(layers[name].weight.shape) for name in select(modules, targets)}
    sizes = {name: rank * (prod(shape[1:]) + shape[0]) for name, shape in shapes.items()}
    components = {component: [size for name, size in sizes.items() if name.startswith(component + ".")] for component in modules}
    return {
        "rank": rank,
        "targets": targets,
        "layers": len(sizes),
        "parameters": sum(sizes.values()),
        "full": sum(prod(shape) for shape in shapes.values()),
        "components": {name: {"layers": len(own), "parameters": sum(own)} for name, own in components.items() if own},
    }


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("component", "class", "tensors", "parameters", "precision", "missing", title=facts["path"])
    for column in (table.columns[2], table.columns[3], table.columns[5]):
        column.justify = "right"
    for part in facts["components"]:
        counted = f"{part['tensors']:,}", f"{part['parameters']:,}"
        table.add_row(part["name"], part["kind"], *counted, part["precision"], f"{len(part['missing']):,}")
    console = Console()
    console.print(table)
    for line in _lines(facts):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(facts: dict[str, Any]) -> list[str]:
    kind = facts["prediction"] or "epsilon or v_prediction, measured when it is loaded"
    digest = f"{facts['sha256']}" + (f" (A1111: {facts['short_hash']})" if facts["short_hash"] else ", over its weight files")
    lines = [
        f"family: {facts['title']} ({facts['family']})",
        f"prediction: {kind} ({facts['prediction_found']}){', zero terminal SNR' if facts['zero_terminal_snr'] else ''}",
        f"sha256: {digest}",
        *(f"note: {note}" for note in facts["notes"]),
    ]
    for part in facts["components"]:
        lines += _named(f"missing in {part['name']}", part["missing"]) + _named(f"of another shape in {part['name']}", part["misshapen"])
    lines += _named("surplus", facts["surplus"])
    lines += [f"it cannot be loaded: {facts['refusal']}"] if facts["refusal"] else []
    lora = facts["lora"]
    per = ", ".join(f"{name} {own['layers']}: {own['parameters']:,}" for name, own in lora["components"].items())
    total = (
        f"{lora['parameters']:,} parameters in {lora['layers']} layers, {lora['parameters'] / lora['full']:.2%} of their {lora['full']:,}"
    )
    return [*lines, f"a LoRA of rank {lora['rank']} on {', '.join(lora['targets'])}: {total} ({per})"]


def _named(title: str, names: Any) -> list[str]:
    if not names:
        return []
    return [f"{title} ({len(names)}): {', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"]
