"""Pictures that are the same, or nearly: a perceptual hash that outlives resizing, recompression and a change of brightness.

Of the picture in grey at 64 × 64 the 16 × 16 lowest frequencies of its cosine transform, without the mean, each as a sign: 255 bits.
Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", sec. 3.2.1, with more bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.fft import dctn

SIDE, LOW = 64, 16
NEAR = 36  # bits of 255 that may differ: a copy cut by 2 % on each side differs in about 32, another pose in 46, another thing in 128
SHADE = 48.0  # grey levels by which the mean colours may differ
FLAT = 2.0  # standard deviation in grey levels, below which a picture has nothing to compare but its colour


@dataclass(frozen=True, eq=False)
class Print:
    """What a picture is recognised by."""

    bits: np.ndarray  # (255,) bool
    colour: np.ndarray  # (3,) mean, 0 … 255
    flat: bool  # of one colour
    shape: float  # log of width / height


def print_of(image: Image.Image) -> Print:
    """Of an RGB picture."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"), np.float64)
    low = dctn(grey, norm="ortho")[:LOW, :LOW].flatten()[1:]
    colour = np.asarray(small, np.float64).reshape(-1, 3).mean(0)
    return Print(low > np.median(low), colour, bool(grey.std() < FLAT), float(np.log(image.width / image.height)))


def near(prints: Sequence[Print]) -> list[tuple[int, int]]:
    """The pairs that look alike, (first, second) with first < second."""
    if not prints:
        return []
    bits = np.stack([one.bits for one in prints]).astype(np.float32)
    ones = bits.sum(1)
    found = []
    for first in range(len(prints) - 1):
        distance = ones[first] + ones[first + 1 :] - 2 * bits[first + 1 :] @ bits[first]
        found += [
            (first, first + 1 + int(n)) for n in np.flatnonzero(distance <= NEAR) if _alike(prints[first], prints[first + 1 + int(n)])
        ]
    return found


def _alike(one: Print, other: Print) -> bool:
    shade = np.abs(one.colour - other.colour).max()
    if one.flat or other.flat:
        return one.flat and other.flat and bool(shade < FLAT)
    return bool(shade < SHADE) and abs(one.shape - other.shape) < 0.1


def groups(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """What hangs together by pairs, each group and all of them in order."""
    group: dict[int, list[int]] = {}
    for one, other in pairs:
        left, right = group.setdefault(one, [one]), group.setdefault(other, [other])
        if left is not right:
            left += right
            for member in right:
                group[member] = left
    return sorted(sorted(members) for members in {id(members): members for members in group.values()}.values())
