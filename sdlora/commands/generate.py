"""sdlora generate: pictures from prompts, with any number of adapters."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sdlora.commands.drawing_options import bar, check_prompts, report, tell, with_options
from sdlora.imports import unswept

MOST_ON_A_SHEET = 400  # pictures


def register(app: typer.Typer) -> None:
    app.command()(generate)


@with_options()
def generate(
    prompt: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="One or several prompts, each in quotes.")] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="PICTURE",
            help="Draw this picture again; what is said beside it is other than there, and none takes a setting back: --hires none.",
        ),
    ] = None,
    settings: Annotated[Path | None, typer.Option(metavar="FILE", help="A TOML file with any of these settings.")] = None,
    **given: Any,
) -> None:
    """Draw every PROMPT with every seed: pictures that carry their settings, and a contact sheet.

    Examples: sdlora generate "a cat, flat emoji" --adapter style.safetensors=0.8 --seed 1-4 --output pictures;
    sdlora generate --from pictures/0001-seed1.png --steps 30; sdlora generate --prompts prompts.txt --output run
    """
    check_prompts(prompt or ())

    with unswept():
        from sdlora import together
        from sdlora.drawing import work
        from sdlora.generation import record

    drawing, recalled = work.gathered({**given, **({"prompt": tuple(prompt)} if prompt else {})}, settings, source)
    result = work.drawn_and_saved(drawing, tell, bar, recalled)
    if together.rank() > 0:
        return  # the first process speaks for all
    report(result.paths, result.seconds)
    if 1 < len(result.pictures) <= MOST_ON_A_SHEET:
        typer.echo(record.save_sheet(list(zip(result.paths, result.pictures, strict=True)), drawing.output))
    if result.known:
        typer.echo(f"{result.known} of this run's pictures were in {drawing.output} already")
