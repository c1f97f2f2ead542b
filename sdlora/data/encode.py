"""Pictures to latents and captions to embeddings, each encoded once.

One at a time, although batches would be faster: then no bit of a result depends on what else was encoded with it, and an
interrupted encoding goes on as if nothing had happened.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdlora import conditioning, latents
from sdlora.conditioning import Conditioning, Sizes
from sdlora.data import pictures
from sdlora.data.cache import Cache
from sdlora.data.folder import Example
from sdlora.models import Components


@dataclass(frozen=True, eq=False)
class Encoded:
    """A folder as the training sees it, on the CPU in fp32."""

    latents: Tensor  # (n, views, c, h, w): as it is and, if mirrored as well, a second view
    captions: tuple[str, ...]  # one per image
    sizes: tuple[Sizes, ...]  # one per image; the same for both views, since the crop is centred

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
    rows = []
    for number, example in enumerate(examples, 1):
        views = (False, True) if flip else (False,)
        rows.append(torch.stack([_latents(example, components, size, mirrored, cache) for mirrored in views]))
        if progress:
            progress(number)
    captions = tuple(example.caption for example in examples)
    return Encoded(torch.stack(rows), captions, tuple(sizes_of(example.path, size) for example in examples))


def embeddings(captions: Sequence[str], components: Components, cache: Cache) -> Conditioning:
    """Of each caption, in fp32 on the CPU."""
    return conditioning.cat(_embedded(caption, components, cache) for caption in captions)


def absent(components: Components, cache: Cache) -> Conditioning:
    """Of no caption at all (`conditioning.encode_absent`), in fp32 on the CPU."""
    return _embedded(None, components, cache)


def _embedded(caption: str | None, components: Components, cache: Cache) -> Conditioning:
    def make() -> dict[str, Tensor]:
        hint = conditioning.encode_absent(components) if caption is None else conditioning.encode_text(components, [caption])
        wide = hint.to(dtype=torch.float32)
        return {"context": wide.context} | ({} if wide.pooled is None else {"pooled": wide.pooled})

    zeros = components.zeros_for_empty if caption is None else None
    kept = cache.get(("text", components.hash, str(components.dtype), caption, zeros), make)
    return Conditioning(kept["context"], kept.get("pooled"))


def _latents(example: Example, components: Components, size: int, mirrored: bool, cache: Cache) -> Tensor:
    def make() -> dict[str, Tensor]:
        pixels = tensor_of(example.path, size)
        return {"latents": latents.encode_image(components, (pixels.flip(-1) if mirrored else pixels)[None])[0].float()}

    return cache.get(
        ("latents", components.hash, str(components.vae.dtype), example.digest, size, mirrored, components.vae.use_tiling), make
    )["latents"]


def sizes_of(path: Path, size: int) -> Sizes:
    """Of a picture whose shorter side is brought to `size` pixels and whose longer one is cut to it, evenly."""
    height, width = pictures.extent(path)
    scale = size / min(height, width)
    crop = ((round(height * scale) - size) // 2, (round(width * scale) - size) // 2)
    return Sizes((height, width), crop, (size, size))


def tensor_of(path: Path, size: int) -> Tensor:
    """(3, size, size) in [−1, 1]."""
    return pictures.to_tensor(pictures.square(pictures.read(path), size))
