"""sdlora train: an adapter from an image folder."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sdlora.models import Components
    from sdlora.training import TrainConfig
    from sdlora.training.again import Again

Origin = Annotated[
    Path | None, typer.Option("--from", metavar="ADAPTER.safetensors", help="Train again with the settings in an adapter's header.")
]


def register(app: typer.Typer) -> None:
    app.command()(train)


def train(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FOLDER | FILE.toml] [KEY=VALUE]…", help="An image folder or a settings file, and changes to it."),
    ] = None,
    origin: Origin = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and touch nothing.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="With --dry-run: make three real steps, and leave nothing behind.")] = False,
    fit: Annotated[str | None, typer.Option("--fit", metavar="8GB", help="Choose what the settings need to fit this memory.")] = None,
) -> None:
    """Train an adapter. Interrupted, even killed: the same command goes on where it stopped, to the same result.

    A folder of pictures is enough: sdlora train pictures

    Example: sdlora train configs/emoji-style.toml steps=24 save_every=6 seed=3 output=runs/short
    """
    from sdlora.errors import SdloraError

    if measure and not dry_run:
        raise SdloraError("--measure belongs to --dry-run; a training tells its speed by itself")
    chosen, again = chosen_settings(settings or [], origin)
    if fit is not None:
        chosen = fitted(chosen, fit)
    if dry_run:
        return plan(chosen, measure)
    path = carry_out(chosen, again=again)
    say(f"adapter: {path}", err=False)


def say(text: str, err: bool = True) -> None:
    """A line, from one of several processes only."""
    from sdlora.training import processes

    if processes.main():
        typer.echo(text, err=err)


def chosen_settings(words: Sequence[str], origin: Path | None) -> "tuple[TrainConfig, Again | None]":
    """The settings that a folder or file, an adapter's header and overrides come to together; later ones win in that order:
    what follows from the folder, the header, the file, the overrides."""
    from sdlora import config
    from sdlora.errors import SdloraError
    from sdlora.training import TrainConfig, again, simple

    first, rest = (words[0], list(words[1:])) if words and ("=" not in words[0] or Path(words[0]).exists()) else (None, list(words))
    folder = Path(first) if first and Path(first).is_dir() else None
    if not words and origin is None:
        raise SdloraError("nothing to train on; give a folder of pictures or a settings file, as sdlora train --help shows")
    if first and folder is None and not first.endswith(".toml"):
        what = "is no folder and no settings file" if Path(first).exists() else "does not exist"
        more = "; for an adapter write --from" if first.endswith(".safetensors") else ""
        raise SdloraError(f"{first} {what}; give a folder of pictures, a settings file (.toml), or settings as key=value{more}")
    start: dict[str, Any] = {}
    found = again.read(origin) if origin else None
    if folder:
        start = simple.settings(folder, rest, found.settings if found else {}, say)
    if found:
        start |= found.settings
        for note in found.notes:
            say(f"note: {note}")
        images = simple.images_of(rest)
        if images and "output" not in start:
            start["output"] = str(simple.output(found.settings.get("name") or images.name))
    chosen = config.load(TrainConfig, None if folder else first, rest, start)
    if found and "base" not in chosen.model_fields_set:
        raise SdloraError(f"{origin} does not say which base model it belongs to by a name known here; give it as base=MODEL")
    return chosen, found


def fitted(chosen: "TrainConfig", size: str) -> "TrainConfig":
    """The settings changed so that they fit, with what was changed and why said."""
    from sdlora.training import fitting

    found = fitting.fit(chosen, fitting.parse(size))
    for line in found.reasons:
        say(line)
    return found.config


def plan(chosen: "TrainConfig", measure: bool) -> None:
    from sdlora.training import footprint, measuring, planning

    found = planning.plan(chosen)
    say("\n".join([*planning.lines(found), *footprint.lines(footprint.estimate(chosen))]), err=False)
    if measure:
        say("\n".join(measuring.lines(measuring.measure(chosen), chosen)), err=False)


def carry_out(config: "TrainConfig", progress: bool = True, components: "Components | None" = None, again: "Again | None" = None) -> Path:
    """Train with samples and prior pictures drawn by sdlora.generation; the adapter's path."""
    from sdlora import atomic, data, training

    found, _ = training.planning.checked(config)
    if again is not None:
        for line in training.again.differences(again, config, data.fingerprint(found.examples)):
            say(f"note: {line}")
    training.plan(config)  # all that can be wrong in the settings, before the weights are read
    atomic.writable_folder(config.output)
    prompts = prompts_of(config)
    if components is None and prompts and training.processes.main():  # else the training loads the base, and lets go of what encodes
        components = training.session.loaded(config, say)
    draw = sampler(config, components, prompts) if components is not None and prompts else None
    return training.train(config, draw, progress, imagine, components)  # interrupted, it says where it goes on


def sampler(config: "TrainConfig", components: "Components", prompts: list[str]) -> Callable[[Path, int], None]:
    """Draws what is not there of a saved adapter's samples and the base's own, and the grid of all: a row per step, a column per
    prompt."""
    from sdlora import files, generation
    from sdlora.generation import Request
    from sdlora.training import gallery
    from sdlora.training.layout import Layout

    place = Layout(config.output)
    wanted, marks = [Request(**facts) for facts in samples_of(config, prompts)], marks_of(config, prompts)

    def drawn(adapters: Sequence[Any] = ()) -> list[Any]:
        return [picture.image for picture in generation.generate(components, wanted, adapters, offload=components.device)]

    def draw(path: Path, step: int) -> None:
        if not gallery.complete(place, 0, marks):
            gallery.save(place, 0, drawn(), marks)
        if not gallery.complete(place, step, marks):
            gallery.save(place, step, drawn([(files.load(path, components.modules), 1.0)]), marks)
        gallery.grid(place, prompts, marks)

    return draw


def samples_of(config: "TrainConfig", prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Fields of the Requests that draw a step's samples."""
    own = config.samples
    how = {"seed": own.seed, "steps": own.steps, "guidance": own.guidance, "clip_skip": config.clip_skip}
    return [{"prompt": text, **how} for text in prompts]


def marks_of(config: "TrainConfig", prompts: Sequence[str]) -> list[str]:
    """What the files of the samples say of themselves: see training.gallery."""
    from json import dumps

    return [dumps(facts, ensure_ascii=False) for facts in samples_of(config, prompts)]


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
    return (picture.image for picture in generate(components, requests, offload=components.device))
