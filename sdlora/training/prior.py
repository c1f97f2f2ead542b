"""Prior preservation: the base's own pictures, drawn before the training and kept in the run folder.

Ruiz et al. 2022 (DreamBooth), arXiv:2208.12242, sec. 3.3.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from sdlora import atomic
from sdlora.data.folder import Example
from sdlora.errors import SdloraError
from sdlora.models import Components
from sdlora.training.config import Prior

Imagine = Callable[[Components, Sequence[tuple[str, int]], Prior], Iterable[Image.Image]]
"""Draws with the bare base: (components, [(prompt, seed), …], settings) -> pictures in that order."""

GROUP = 8  # pictures drawn together: always the same ones, since rounding depends on a batch's size


def examples(folder: Path, prior: Prior, components: Components, seed: int, size: int, imagine: Imagine | None) -> list[Example]:
    """The pictures and captions of `prior`, as PNGs in a subfolder named after all that they depend on; drawn if not there."""
    facts = (prior.model_dump(exclude={"weight", "batch_size"}), components.hash, seed, size)
    place = folder / hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    wanted = [(prior.prompts[i % len(prior.prompts)], _seed(seed, i)) for i in range(prior.images)]
    paths = [place / f"{i:04d}.png" for i in range(prior.images)]
    for start in range(0, prior.images, GROUP):
        group = slice(start, start + GROUP)
        if all(path.exists() for path in paths[group]):
            continue
        if imagine is None:
            raise SdloraError("prior.prompts need someone to draw them: give train() an `imagine` callback, or leave prior out")
        for path, picture in zip(paths[group], imagine(components, wanted[group], prior), strict=True):
            with atomic.replacing(path) as temporary:
                picture.save(temporary)
    return [Example(path, (prompt,), regular=True) for path, (prompt, _) in zip(paths, wanted, strict=True)]


def _seed(seed: int, number: int) -> int:
    """Apart from the small seeds that people use, so that no prior picture is one that they will draw later."""
    return int.from_bytes(hashlib.sha256(f"{seed} prior {number}".encode()).digest()[:4], "little")
