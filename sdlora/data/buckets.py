"""Aspect-ratio buckets: at which of a few sizes a picture is trained, and what of it is seen there. Pure functions.

The sizes are those of kohya's sd-scripts (library/model_util.py, make_bucket_resolutions): for every width the largest height such
that the area does not exceed resolution², and the same lying. Of them a picture gets the one in which most of it is seen, which is
the one of the nearest logarithm of the aspect ratio; so a picture and its turned copy get sizes that are turned as well.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from sdlora.conditioning import Sizes
from sdlora.data.pictures import Box
from sdlora.data.settings import DataSettings
from sdlora.errors import SdloraError

CUSTOMARY = 64  # the step of Stable Diffusion's own lists of sizes

Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True)
class Grid:
    """What a base model asks of a picture's size."""

    name: str
    size: int  # the side that it was trained with
    multiple: int  # of which both sides have to be
    factor: int  # pixels per latent, along a side


def grid(name: str, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> Grid:
    """By the configurations of the U-Net and the VAE."""
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return Grid(name, unet["sample_size"] * factor, factor * 2 ** (len(unet["block_out_channels"]) - 1), factor)


@dataclass(frozen=True)
class Crop:
    """A picture at its place in training: brought to `scale`, and of that the `size` at (top, left)."""

    whole: Size  # of the picture in its file
    size: Size
    top: float  # in pixels of the scaled picture
    left: float

    @cached_property
    def scale(self) -> float:
        """So that the picture just covers the size."""
        return max(self.size[0] / self.whole[0], self.size[1] / self.whole[1])

    @property
    def slack(self) -> tuple[float, float]:
        """How much is cut off, downwards and across, in pixels of the scaled picture."""
        return tuple(max(0.0, side * self.scale - seen) for side, seen in zip(self.whole, self.size, strict=True))  # type: ignore[return-value]

    @property
    def box(self) -> Box:
        """What is seen, in the picture's own pixels."""
        height, width = self.whole
        upper, left = self.top / self.scale, self.left / self.scale
        return left, upper, min(width, left + self.size[1] / self.scale), min(height, upper + self.size[0] / self.scale)

    @property
    def lost(self) -> float:
        """Share of the picture that is cut off."""
        return 1 - self.size[0] * self.size[1] / (self.scale**2 * self.whole[0] * self.whole[1])

    def sizes(self, mirrored: bool = False) -> Sizes:
        """What SDXL is told; of the mirrored picture, what is cut off on its own left."""
        left = self.slack[1] - self.left if mirrored else self.left
        return Sizes(self.whole, (int(self.top), int(left)), self.size)


@dataclass(frozen=True)
class Frames:
    """How the pictures of one training are framed."""

    sides: tuple[int, ...]
    on: bool = False  # buckets; else squares
    step: int = CUSTOMARY
    smallest: int | None = None
    largest: int | None = None
    upscale: bool = True

    def sizes(self, side: int) -> tuple[Size, ...]:
        if not self.on:
            return ((side, side),)
        return resolutions(side, self.step, *self.bounds(side))

    def bounds(self, side: int) -> tuple[int, int]:
        """The smallest and the largest side."""
        return self.smallest or max(self.step, side // 2 // self.step * self.step), self.largest or 2 * side


def frames(settings: DataSettings, base: Grid) -> Frames:
    """With what is left to the base filled in. SdloraError for a size that it cannot serve."""
    sides, chosen = settings.resolutions or (base.size,), settings.buckets
    for side in sides:
        _check("resolution", side, base)
    for name in ("step", "smallest", "largest"):
        if (value := getattr(chosen, name)) is not None:
            _check(f"buckets.{name}", value, base)
    for side in sides:
        if not (chosen.smallest or side) <= side <= (chosen.largest or side):
            raise SdloraError(f"resolution {side} does not lie between buckets.smallest and buckets.largest")
    near = min(sides) // 8 // base.multiple * base.multiple  # a step of 64 suits sides of 512 and more
    step = chosen.step or max(base.multiple, min(CUSTOMARY, near))
    return Frames(sides, chosen.on, step, chosen.smallest, chosen.largest, chosen.upscale)


def _check(name: str, value: int, base: Grid) -> None:
    if value % base.multiple:
        near = max(base.multiple, round(value / base.multiple) * base.multiple)
        raise SdloraError(f"{name} is {value}; {base.name} needs a multiple of {base.multiple}, such as {near}")


@lru_cache(maxsize=256)
def resolutions(side: int, step: int, smallest: int, largest: int) -> tuple[Size, ...]:
    """Sizes of at most side² pixels whose sides are multiples of `step` between `smallest` and `largest`; a square is among them."""
    square = max(step, side // step * step)
    found = {(square, square)}
    for width in range(-(-smallest // step) * step, largest + 1, step):
        height = min(largest, side * side // width) // step * step
        if height >= max(smallest, 1):
            found |= {(height, width), (width, height)}
    return tuple(sorted(found))


def framed(whole: Size, how: Frames, side: int, at: tuple[float, float] = (0.5, 0.5)) -> Crop:
    """The crop of a picture of (height, width) pixels; `at` says how much of what is cut off lies above and on the left, 0 … 1.

    SdloraError where nothing may be enlarged and the picture is smaller than any size.
    """
    size = min(how.sizes(side), key=lambda size: (_distance(whole, size), -size[0] * size[1]))
    if not how.upscale and Crop(whole, size, 0, 0).scale > 1:
        size = _within(whole, how, side)
    crop = Crop(whole, size, 0, 0)
    return Crop(whole, size, crop.slack[0] * at[0], crop.slack[1] * at[1])


def _distance(whole: Size, size: Size) -> float:
    """−log of the share of the picture that is seen at `size`."""
    return round(abs(math.log(whole[1] / whole[0]) - math.log(size[1] / size[0])), 9)


def _within(whole: Size, how: Frames, side: int) -> Size:
    """The size nearest below the picture's own, brought down where it has too many pixels or too long a side."""
    if min(whole) < how.step:
        raise SdloraError(f"a picture of {whole[1]} × {whole[0]} pixels is smaller than {how.step}, and buckets.upscale is off")
    longest = how.bounds(side)[1]
    scale = min(1.0, max(how.step / min(whole), min(side / math.sqrt(whole[0] * whole[1]), longest / max(whole))))
    height, width = (min(longest, int(length * scale + 1e-9)) // how.step * how.step for length in whole)
    return height, width
