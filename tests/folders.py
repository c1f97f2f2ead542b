"""Small folders of pictures with captions, to train on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SMALL = ((32, 32),) * 3
NUMBERED = "picture {}, sks style"


def pictures(folder: Path, sizes: Sequence[tuple[int, int]] = SMALL, captions: str | Sequence[str] = NUMBERED, *, seed: int = 0) -> Path:
    """`folder` with 0.png, 1.png, … of noise, (width, height) each, and a caption beside each: its own, or `captions` with its number."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i, (width, height) in enumerate(sizes):
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(captions.format(i) if isinstance(captions, str) else captions[i])
    return folder
