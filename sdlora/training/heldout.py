"""Pictures that are not trained on: which, and what is kept of them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sdlora.data import Cache, Example, Found, gather
from sdlora.errors import SdloraError
from sdlora.models import Components
from sdlora.training import sources
from sdlora.training.batches import Source
from sdlora.training.config import TrainConfig

# As a person sees the picture: whole, with the caption as it is written; of several captions the same one whatever the run's seed is
PLAIN = {"flip": False, "crop": "centre", "shuffle_tags": False, "tag_dropout": 0.0, "masks": "off", "seed": 0}
ELSEWHERE = {"folders": (), "regularisation": None, "metadata": None}  # what is said of the image folder only


@dataclass(frozen=True, eq=False)
class Held:
    source: Source
    strata: int  # timesteps per picture
    pictures: str = ""  # a name for the contents of pictures and captions, in any order


def divided(found: Found, config: TrainConfig) -> tuple[Found, list[Example]]:
    """(to train on, to validate with) by the settings of the validation."""
    own = config.validation
    if own.images is not None:
        held = gather(config.model_copy(update={"images": own.images, **ELSEWHERE, "masks": "off"})).images
        return _apart(found, held, config), held
    held = shares(found.images, own.fraction)
    digests = {example.digest for example in held}
    rest = tuple(example for example in found.examples if example.regular or example.digest not in digests)
    return replace(found, examples=rest), [replace(example, mask=None) for example in held]


def shares(examples: Sequence[Example], fraction: float) -> list[Example]:
    """Those to hold out. Whether a picture is follows from its bytes alone, so that pictures which come or go move no other; where
    chance would hold out none, the one with the smallest hash is."""
    if not fraction:
        return []
    bound = fraction * 16**16
    digests = {example.digest for example in examples if int(example.digest[:16], 16) < bound} or {min(e.digest for e in examples)}
    held = [example for example in examples if example.digest in digests]
    if len(held) == len(examples):
        raise SdloraError(
            f"validation.fraction {fraction:g} holds out all {len(examples)} pictures; make it smaller, or give validation.images"
        )
    return held


def _apart(found: Found, held: Sequence[Example], config: TrainConfig) -> Found:
    """SdloraError if a picture is both trained on and validated with: its loss would fall without meaning anything."""
    known = {example.digest for example in found.examples}
    twice = [example.path.name for example in held if example.digest in known]
    if twice:
        raise SdloraError(f"{twice[0]} lies in {config.validation.images} and in {config.images}; take it out of one of them")
    return found


def encoded(held: Sequence[Example], components: Components, config: TrainConfig, cache: Cache, say: Callable[[str], None]) -> Held:
    plain = config.model_copy(update=PLAIN)
    source = sources.source("validation", held, components, plain, cache, 1, 1.0, say)
    facts = sorted((row.key, row.shape, row.wordings[0]) for row in source.data.rows)
    return Held(source, config.validation.timesteps, hashlib.sha256(repr(facts).encode()).hexdigest()[:16])
