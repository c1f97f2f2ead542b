"""From the settings to what the batches are made of: which crops and which wordings a training will ask for, and these encoded."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from sdlora import captions
from sdlora.captions import Wording
from sdlora.data import Cache, buckets, folder, pictures
from sdlora.data.buckets import Crop, Frames, Grid
from sdlora.data.encode import Look, Planned, encoded, without_blank_masks
from sdlora.data.folder import Example, Found
from sdlora.errors import SdloraError
from sdlora.models import Components
from sdlora.training import draws, prior, text, units
from sdlora.training.batches import Source
from sdlora.training.config import TrainConfig
from sdlora.training.deal import Deck
from sdlora.training.text import Prompts

Say = Callable[[str], None]
TELL_EVERY = 15.0  # seconds


def gathered(config: TrainConfig) -> Found:
    """The pictures that can be read, with their captions. SdloraError for what is missing, and for a trigger that no caption has."""
    found = folder.gather(config)
    for trigger in config.triggers:
        if not any(captions.contains(caption, trigger) for example in found.images for caption in example.captions):
            raise SdloraError(
                f"the trigger {trigger!r} is in none of the {len(found.images)} captions of {config.images} (the first: "
                f"{found.images[0].caption!r}); put it into the captions, set insert_trigger, or leave trigger out"
            )
    return found


def grid(components: Components) -> Grid:
    return buckets.grid(components.name, components.unet.config, components.vae.config)


def made(
    found: Found, components: Components, config: TrainConfig, cache: Cache, place: Path, imagine: prior.Imagine | None, say: Say
) -> list[Source]:
    """All sources, encoded: the images, and beside them class pictures and those that the base draws into `place`."""
    for line in skipped_lines(found.skipped):
        say(line)
    say("encoding the images")
    sources = [source("images", found.images, components, config, cache, config.batch_size, 1.0, say)]
    others = list(found.regular)
    if config.prior.on:
        say("drawing the base's own pictures")
        with units.apart(components.unet):
            others += prior.examples(place, config.prior, components, config.seed, components.size, imagine)
    if others and config.prior.weight:
        size = config.prior.batch_size or config.batch_size
        sources.append(source("prior", others, components, config, cache, size, config.prior.weight, say))
    if cache.problem:
        say(f"nothing is kept for the next run: {cache.problem}")
    return sources


def source(
    name: str, examples: Sequence[Example], components: Components, config: TrainConfig, cache: Cache, size: int, weight: float, say: Say
) -> Source:
    """`examples`, framed and encoded. One that cannot be decoded is told of and left out, or refused if `config.strict`."""
    how = buckets.frames(config, grid(components))
    look = Look(config.flip, config.background)
    plan = planned(examples, config, how, size, name)
    data = encoded(plan, components, cache, look, _teller(len(plan), say), config.strict)
    for line in skipped_lines(data.skipped):
        say(line)
    if not data.rows:
        raise SdloraError(f"none of the {len(examples)} pictures in {config.images} can be decoded; the first: {data.skipped[0]}")
    if data.skipped:  # without them the others are shown more often, in more crops
        data = encoded(planned(data.examples, config, how, size, name), components, cache, look)
    return Source(name, without_blank_masks(data), size, weight)


def _teller(total: int, say: Say) -> Callable[[int], None]:
    """Says now and then how many pictures are encoded."""
    last = time.monotonic()

    def told(number: int) -> None:
        nonlocal last
        if time.monotonic() - last > TELL_EVERY:
            last = time.monotonic()
            say(f"encoded {number} of {total}")

    return told


def skipped_lines(skipped: Sequence[str]) -> list[str]:
    return [f"left out: {reason.partition('; replace it')[0]}" for reason in skipped]


def planned(examples: Sequence[Example], config: TrainConfig, how: Frames, size: int, name: str = "images") -> list[Planned]:
    """A row for every picture and resolution, with the crops and wordings that the training will ask for."""
    known = []
    for example in examples:
        try:
            whole = pictures.extent(example.path)
        except SdloraError:  # a header that has become unreadable: `encoded` says so
            whole = (how.sides[0], how.sides[0])
        known += [(example, whole, side) for side in how.sides]
    firsts = [_framed(example, whole, how, side) for example, whole, side in known]
    deck = Deck([first.size for first in firsts], [example.repeats for example, _, _ in known])
    batches = config.steps * config.accumulate
    rows = []
    for number, (example, whole, side) in enumerate(known):
        asked = deck.showings(number, batches, size)
        crops, turns = crops_of(example, whole, how, side, config, name)
        rows.append(Planned(example, crops[:asked], wordings(example, config, name), turns))
    return rows


def _framed(example: Example, whole: tuple[int, int], how: Frames, side: int) -> Crop:
    try:
        return buckets.framed(whole, how, side)
    except SdloraError as error:
        raise SdloraError(f"{example.path}: {error}; take it out of the folder, or leave out buckets.upscale") from error


def crops_of(
    example: Example, whole: tuple[int, int], how: Frames, side: int, config: TrainConfig, name: str
) -> tuple[tuple[Crop, ...], int]:
    """All crops of a picture that take turns, and how many they are: one where nothing is cut off or the middle is asked for."""
    middle = buckets.framed(whole, how, side)
    if config.crop == "centre" or max(middle.slack) < 1e-6:
        return (middle,), 1
    chances = [draws.chance(config.seed, f"crop of {name}", example.digest[:16], number) for number in range(config.crops)]
    return tuple(buckets.framed(whole, how, side, (chance.random(), chance.random())) for chance in chances), config.crops


def wordings(example: Example, config: TrainConfig, name: str = "images") -> tuple[str, ...]:
    """The texts of a picture that take turns."""
    how = wording(config)

    def chance(number: int) -> Random:
        return draws.chance(config.seed, f"caption of {name}", example.digest[:16], number)

    return captions.wordings(example.captions, how, chance)


def wording(config: TrainConfig) -> Wording:
    return Wording(config.shuffle_tags, config.tag_dropout, config.keep_tokens, config.keep_separator, config.caption_variants)


def prompts(sources: Sequence[Source], components: Components, config: TrainConfig, cache: Cache, learns: bool) -> Prompts:
    """What the U-Net is told of every text of the sources; `learns`: by text encoders that change meanwhile."""
    texts = list(dict.fromkeys(text for source in sources for text in asked(source, config)))
    if learns:
        return text.encoded(texts, components, config.clip_skip, config.caption_chunks)
    return text.cached(texts, components, cache, config.clip_skip, config.caption_chunks)


def asked(source: Source, config: TrainConfig) -> list[str]:
    """The texts that the batches of this training can ask for: fewer than all where it is short."""
    batches = config.steps * config.accumulate
    counts = [source.deck.showings(number, batches, source.batch_size) for number in range(len(source.data))]
    return [wording for row, count in zip(source.data.rows, counts, strict=True) for wording in row.wordings[:count]]
