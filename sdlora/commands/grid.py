"""sdlora grid and sdlora sweep: settings against each other, on a labelled sheet."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdlora.commands.drawing_options import bar, check_prompts, tell, with_options

if TYPE_CHECKING:
    from sdlora.drawing.grid import Grid


def register(app: typer.Typer) -> None:
    app.command()(grid)
    app.command()(sweep)


@with_options("prompts")
def grid(
    file: Annotated[Path, typer.Argument(metavar="GRID.toml", help="Settings, and the tables [x], [y] and [z]: axis and values.")],
    **given: Any,
) -> None:
    """Draw settings against each other: a labelled sheet per value of z, and every cell. Only cells that are missing are drawn.

    An axis is any setting, or replace (in the prompt), strength (of an adapter) or checkpoint (of a training run):

    \b
    prompt = "a cat face"
    [x]
    axis = "steps"
    values = [10, 20, 30]
    """
    from sdlora.drawing.grid import Grid

    _carry_out(Grid.read(file, given))


@with_options("prompts", "adapter", "eta")
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The adapter.")],
    prompt: Annotated[list[str], typer.Argument(metavar="PROMPT", help="One or several, a row each.")],
    eta: Annotated[str, typer.Option(help="Strengths: from:to:step, or 0,0.5,1.")] = "0:1.2:0.2",
    **given: Any,
) -> None:
    """Draw an adapter at many strengths: a column for each, a row per PROMPT (or per seed), more seeds on more sheets.

    Example: sdlora sweep style.safetensors "a cat, flat emoji" "a house" --eta 0:1.2:0.2
    """
    check_prompts(prompt)

    from sdlora.drawing.grid import Grid
    from sdlora.drawing.sweep import swept

    found: Grid = swept(file, tuple(prompt), eta, given)
    _carry_out(found)


def _carry_out(grid: "Grid") -> None:
    drawn = grid.draw(tell, bar)
    for path in drawn.sheets:
        typer.echo(path)
    if drawn.sheets:
        there = drawn.cells - len(drawn.new)
        typer.echo(
            f"{drawn.cells} cells, {len(drawn.new)} of them drawn now{f', {there} there before' * (there > 0)}; {drawn.seconds:.1f} s"
        )
