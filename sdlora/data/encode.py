"""Pictures to latents and captions to embeddings, each encoded once.

One at a time, although batches would be faster: then no bit of a result depends on what else was encoded with it, and an
interrupted encoding goes on as if nothing had happened.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdlora import models
from sdlora.data import pictures
from sdlora.data.cache import Cache
from sdlora.data.folder import Example
from sdlora.models import Components


@dataclass(frozen=True, eq=False)
class Encoded:
    """A folder as the training sees it, on the CPU in fp32."""

    latents: Tensor  # (n, views, c, h, w): as it is and, if mirrored as well, a second view
    captions: tuple[str, ...]  # one per image

    def __len__(self) -> int:
        return len(self.captions)


def encode(
    examples: Sequence[Example],
    components: Components,
    size: int,
    cache: Cache,
    flip: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Encoded:
    """The posterior means of all pictures at `size` pixels; with `flip` also of their mirror images."""
    latents = []
    for number, example in enumerate(examples, 1):
        views = (False, True) if flip else (False,)
        latents.append(torch.stack([_latents(example, components, size, mirrored, cache) for mirrored in views]))
        if progress:
            progress(number)
    return Encoded(torch.stack(latents), tuple(example.caption for example in examples))


def embeddings(captions: Sequence[str], components: Components, cache: Cache) -> Tensor:
    """(n, 77, width) fp32."""

    def one(caption: str) -> Tensor:
        return cache.get(
            ("text", components.hash, str(components.dtype), caption), lambda: models.encode_text(components, [caption])[0].float()
        )

    return torch.stack([one(caption) for caption in captions])


def _latents(example: Example, components: Components, size: int, mirrored: bool, cache: Cache) -> Tensor:
    def make() -> Tensor:
        pixels = tensor_of(example.path, size)
        return models.encode_image(components, (pixels.flip(-1) if mirrored else pixels)[None])[0].float()

    return cache.get(("latents", components.hash, str(components.dtype), example.digest, size, mirrored), make)


def tensor_of(path: Path, size: int) -> Tensor:
    """(3, size, size) in [−1, 1]."""
    return pictures.to_tensor(pictures.square(pictures.read(path), size))
