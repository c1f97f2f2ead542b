"""sdlora train: an adapter from an image folder."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sdlora.models import Components
    from sdlora.training import TrainConfig


def register(app: typer.Typer) -> None:
    app.command()(train)


def train(
    settings: Annotated[list[str], typer.Argument(metavar="[FILE.toml] [KEY=VALUE]…", help="A settings file, and changes to it.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and touch nothing.")] = False,
) -> None:
    """Train an adapter. Interrupted, even killed: the same command goes on where it stopped, to the same result.

    Example: sdlora train configs/emoji-style.toml steps=24 save_every=6 seed=3 output=runs/short
    """
    from sdlora import config
    from sdlora.training import TrainConfig

    has_file = "=" not in settings[0] or Path(settings[0]).exists()
    chosen = config.load(TrainConfig, settings[0] if has_file else None, settings[1:] if has_file else settings)
    if dry_run:
        from sdlora.training import planning

        typer.echo("\n".join(planning.lines(planning.plan(chosen))))
        return
    typer.echo(f"adapter: {carry_out(chosen)}")


def carry_out(config: "TrainConfig", progress: bool = True, components: "Components | None" = None) -> Path:
    """Train with samples and prior pictures drawn by sdlora.generation; the adapter's path."""
    from sdlora import atomic, training

    training.plan(config)  # all that can be wrong in the settings, before the weights are read
    atomic.writable_folder(config.output)
    prompts = prompts_of(config)
    if components is None and prompts:  # else the training loads the base itself, and lets go of what it has encoded with
        components = training.session.loaded(config, lambda text: typer.echo(text, err=True))
    draw = sampler(config, components, prompts) if components is not None and prompts else None
    return training.train(config, draw, progress, imagine, components)  # interrupted, it says where it goes on


def sampler(config: "TrainConfig", components: "Components", prompts: list[str]) -> Callable[[Path, int], None]:
    """Draws the samples of a saved adapter onto one sheet: a row per prompt, without and with the adapter."""
    from sdlora import files, generation, sheet
    from sdlora.generation import Request
    from sdlora.training.layout import Layout

    wanted = [Request(text, seed=config.samples.seed, steps=config.samples.steps, guidance=config.samples.guidance) for text in prompts]
    plain: list[Any] = []  # the base's own pictures do not change

    def draw(path: Path, step: int) -> None:
        plain.extend([] if plain else [picture.image for picture in generation.generate(components, wanted)])
        adapter = files.load(path, components.modules)
        drawn = [picture.image for picture in generation.generate(components, wanted, [(adapter, 1.0)])]
        rows = [list(pair) for pair in zip(plain, drawn, strict=True)]
        sheet.contact_sheet(rows, prompts, ["base", f"step {step}"], Layout(config.output).sample(step))

    return draw


def prompts_of(config: "TrainConfig") -> list[str]:
    """The sample prompts: those of the settings, or captions from all over the image folder."""
    from sdlora import data

    if config.samples.prompts or not config.samples.count:
        return list(config.samples.prompts)
    captions = list(dict.fromkeys(example.caption for example in data.gather(config).images))
    count = min(config.samples.count, len(captions))
    return [captions[i * len(captions) // count] for i in range(count)]


def imagine(components: "Components", wanted: Sequence[tuple[str, int]], prior: Any) -> Iterator[Any]:
    """The base's own pictures, for prior preservation."""
    from sdlora.generation import Request, generate

    requests = [Request(prompt, seed=seed, steps=prior.sampling_steps, guidance=prior.guidance) for prompt, seed in wanted]
    return (picture.image for picture in generate(components, requests))
