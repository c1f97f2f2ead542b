"""sdlora demo: train two adapters on the samples, draw with them and measure what they cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sdlora.demo import Result


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    output: Annotated[Path | None, typer.Option(help="Folder for everything.  [default: runs/demo, or runs/demo-fast]")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="A few steps and pictures only: shows that it works, not what it can do.")] = False,
    base: Annotated[str, typer.Option(help="Base model: emoji, or a Stable Diffusion 1.x folder in diffusers' layout.")] = "emoji",
    samples: Annotated[Path | None, typer.Option(help="Folder with configs/ and datasets/; by default the checkout's.")] = None,
) -> None:
    """Train a style and a character adapter on the samples, draw one sheet with both and measure what they cost.

    Takes a few minutes on two cores. Once more, it goes on where it was, or uses what is trained.
    """
    from time import perf_counter

    from rich.console import Console

    from sdlora.commands.benchmark import bar, show
    from sdlora.commands.train import carry_out
    from sdlora.demo import Demo, run

    start, console = perf_counter(), Console()
    wanted = Demo(output or Path("runs/demo-fast" if fast else "runs/demo"), base, fast, samples)

    def say(words: str) -> None:
        console.print(f"[bold]{words}[/] [dim]({perf_counter() - start:.0f} s)[/]", highlight=False)

    result = run(wanted, carry_out, say, lambda: bar(console))
    show(result.timing, console)
    typer.echo("\n".join(summary(result, perf_counter() - start)))


def summary(result: "Result", seconds: float) -> list[str]:
    """Where everything is, and what to try next."""
    style, character = shown(result.style), shown(result.character)
    return [
        "",
        f"the sheet          {shown(result.sheet)}",
        f"the timing table   {shown(result.timing.markdown)}",
        f"the style          {style}  (“{result.triggers.style}”)",
        f"the character      {character}  (“{result.triggers.character}”)",
        f"all in {seconds:.0f} s; now for example:",
        f'  sdlora generate "a whale, {result.triggers.style}" --adapter {style}=0.8 --seed 1-4',
    ]


def shown(path: Path) -> Path:
    """As short as it can be typed from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
