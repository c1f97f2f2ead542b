"""What is wanted: one Request per picture, and the grammar of `--seed` and `--adapter`."""

import math
from dataclasses import dataclass
from pathlib import Path

from sdlora.errors import SdloraError

MOST_SEEDS = 10_000  # in one --seed: more is taken for a slip of the keyboard
LAST_SEED = 2**63 - 1  # torch's generators take no more


Pair = tuple[int, int]


@dataclass(frozen=True)
class Request:
    """One picture. `generate` draws it; the settings in its PNG are made from it."""

    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int = 20  # calls of the U-Net (pairs of them, with guidance)
    guidance: float = 5.0  # s of u + s (c − u); 1 is the plain conditional model, at half the cost
    width: int | None = None  # pixels; None is what the base was trained on
    height: int | None = None
    adapters: tuple[tuple[str, float], ...] = ()  # (file, strength), for the record: `generate` takes the adapters themselves
    original: Pair | None = None  # SDXL: (height, width) in pixels of the picture it should look like; None is the picture's own
    crop: Pair = (0, 0)  # SDXL: (top, left) in pixels, what it should look cropped by
    target: Pair | None = None  # SDXL: (height, width); None is the picture's own

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= LAST_SEED:
            raise SdloraError(f"seed is {self.seed}; it has to be from 0 to {LAST_SEED}")
        if self.steps < 1:
            raise SdloraError(f"steps is {self.steps}; it has to be at least 1 (20 is usual)")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise SdloraError(f"guidance is {self.guidance}; it has to be a number from 0 on (1 is none, 5 is usual)")
        for name, side in (("width", self.width), ("height", self.height)):
            if side is not None and side < 1:
                raise SdloraError(f"{name} is {side}; it is a number of pixels")
        for name, pair, least in (("original", self.original, 1), ("crop", self.crop, 0), ("target", self.target, 1)):
            if pair is not None and (len(pair) != 2 or min(pair) < least):
                words = "top and left" if name == "crop" else "height and width"
                raise SdloraError(f"{name} is {pair}; it is two numbers of pixels, {words}")


def parse_seeds(text: str) -> list[int]:
    """ "1-4" -> 1, 2, 3, 4;  "1,5,9" -> 1, 5, 9;  both mix. Each seed once, in the order given."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        if not _number(first) or (dash and not _number(last)):
            raise SdloraError(f"--seed {text!r}: {part.strip()!r} is no seed; write one as 7, several as 1,5,9 or 1-4")
        span = range(int(first), int(last or first) + 1)
        if not span:
            raise SdloraError(f"--seed {text!r}: {part.strip()!r} runs backwards; write it as {last}-{first}")
        if len(span) > MOST_SEEDS:
            raise SdloraError(f"--seed {text!r}: {len(span):,} seeds; at most {MOST_SEEDS:,} at a time")
        seeds |= dict.fromkeys(span)
    return list(seeds)


def parse_pair(text: str, option: str) -> Pair:
    """ "768x1024" -> 768, 1024: two numbers of pixels."""
    one, _, two = text.partition("x")
    if not (_number(one) and _number(two)):
        raise SdloraError(f"{option} {text!r} is not two numbers of pixels; write it as 1024x1024")
    return int(one), int(two)


def parse_adapter(text: str) -> tuple[Path, float]:
    """ "style.safetensors=0.8" -> its path and strength; without "=…" the strength is 1. SdloraError if there is no such file."""
    name, equals, strength = text.rpartition("=")
    if not equals or Path(text).is_file():
        name, strength = text, "1"
    try:
        eta = float(strength)
    except ValueError:
        eta = math.nan
    if not math.isfinite(eta):
        raise SdloraError(f"--adapter {text!r}: the strength {strength!r} is not a number; write FILE=0.8")
    path = Path(name)
    if not path.is_file():
        raise SdloraError(f"--adapter {text!r}: there is no file {name!r}; check the path")
    return path, eta


def _number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 19
