"""Pictures that are not trained on: which, and what is kept of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from sdlora.data import Encoded, Example
from sdlora.errors import SdloraError


@dataclass(frozen=True, eq=False)
class Held:
    """The pictures that are not trained on, encoded."""

    data: Encoded
    digests: tuple[str, ...]  # sha256 of each file: its noise depends on nothing else
    strata: int  # timesteps per picture


def divided(examples: Sequence[Example], fraction: float) -> tuple[list[Example], list[Example]]:
    """(to train on, to validate on). Whether a picture is held out follows from its bytes alone, so that pictures which come or go
    move no other; where chance would hold out none, the one with the smallest hash is."""
    if not fraction:
        return list(examples), []
    bound = fraction * 16**16
    held = {example.digest for example in examples if int(example.digest[:16], 16) < bound} or {min(e.digest for e in examples)}
    train = [example for example in examples if example.digest not in held]
    if not train:
        raise SdloraError(
            f"validation.fraction {fraction:g} holds out all {len(examples)} pictures; make it smaller, or give validation.images"
        )
    return train, [example for example in examples if example.digest in held]
