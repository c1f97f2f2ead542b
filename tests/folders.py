"""Small folders of pictures with captions, to train on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SMALL = ((32, 32),) * 3
NUMBERED = "picture {}, sks style"
LONG = "a cat face, flat emoji, " * 12 + "a robot"  # two chunks of 75 tokens


def noise(width: int, height: int, seed: int | np.random.Generator) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def picture(path: Path, seed: int) -> None:
    """`path` of 32 × 32 pixels of noise and a caption beside it, both by the seed; the folder where it is not there."""
    path.parent.mkdir(exist_ok=True)
    noise(32, 32, seed).save(path)
    path.with_suffix(".txt").write_text(NUMBERED.format(seed))


def pictures(folder: Path, sizes: Sequence[tuple[int, int]] = SMALL, captions: str | Sequence[str] = NUMBERED, *, seed: int = 0) -> Path:
    """`folder` with 0.png, 1.png, … of noise, (width, height) each, and a caption beside each: its own, or `captions` with its number."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for i, size in enumerate(sizes):
        noise(*size, rng).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(captions.format(i) if isinstance(captions, str) else captions[i])
    return folder
