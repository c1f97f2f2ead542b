"""Pictures to latents and captions to embeddings, each encoded once.

One at a time: then no bit of a result depends on what else was encoded with it, and an interrupted encoding goes on as if nothing
had happened. Eight at a time take 0.9 of the time (base emoji, 64 and 128 pixels, one thread of a CPU) and round differently.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from sdlora import conditioning, hardware, latents
from sdlora.conditioning import Conditioning, Sizes
from sdlora.data import pictures
from sdlora.data.buckets import Crop, Frames, framed
from sdlora.data.cache import Cache
from sdlora.data.folder import Example, digest
from sdlora.data.weights import weights_hash
from sdlora.errors import SdloraError
from sdlora.models import Components

Facts = tuple[object, ...]


@dataclass(frozen=True, eq=False)
class View:
    """A picture as the U-Net may see it, on the CPU in fp32."""

    latents: Tensor  # (c, h, w)
    sizes: Sizes
    mask: Tensor | None = None  # (1, h, w) in [0, 1]: how much the loss counts where


@dataclass(frozen=True)
class Planned:
    """A picture at one resolution, before it is encoded."""

    example: Example
    crops: tuple[Crop, ...]  # those that will be asked for
    wordings: tuple[str, ...]  # of its caption; they take turns
    turns: int = 1  # how many crops take turns; no fewer than `crops`

    @property
    def key(self) -> str:
        """By which chance knows it: the same for the same picture, wherever it lies."""
        return self.example.digest[:16]


@dataclass(frozen=True, eq=False)
class Row:
    """A picture at one resolution, encoded: what a batch is made of."""

    views: tuple[tuple[View, ...], ...]  # for each crop the picture and, if it may be mirrored, its mirror image
    wordings: tuple[str, ...]
    key: str = ""
    turns: int = 1
    repeats: int = 1
    weight: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of the latents: what has to be the same in a batch."""
        height, width = self.views[0][0].latents.shape[-2:]
        return height, width


@dataclass(frozen=True, eq=False)
class Encoded:
    """A folder as the training sees it."""

    rows: tuple[Row, ...]
    examples: tuple[Example, ...] = ()  # each picture once, however many resolutions it has
    skipped: tuple[str, ...] = ()  # pictures that could not be decoded, and why

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """One per picture."""
        return tuple(example.caption for example in self.examples)

    @cached_property
    def wordings(self) -> tuple[str, ...]:
        """All texts that may be asked for, each once."""
        return tuple(dict.fromkeys(text for row in self.rows for text in row.wordings))


@dataclass(frozen=True)
class Look:
    """How every picture is shown."""

    flip: bool = False  # mirror images as well
    background: str = "white"


def encode(
    examples: Sequence[Example],
    components: Components,
    size: int,
    cache: Cache,
    flip: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Encoded:
    """The middle squares of all pictures at `size` pixels; with `flip` also their mirror images."""
    plan = [Planned(e, (framed(pictures.extent(e.path), Frames((size,)), size),), e.captions) for e in examples]
    return encoded(plan, components, cache, Look(flip), progress)


def encoded(
    plan: Sequence[Planned],
    components: Components,
    cache: Cache,
    look: Look = Look(),
    progress: Callable[[int], None] | None = None,
    strict: bool = True,
) -> Encoded:
    """The posterior means of all pictures as planned. One that cannot be decoded is a SdloraError if `strict`, else left out."""
    rows: list[Row] = []
    examples: dict[Path, Example] = {}
    skipped: dict[Path, str] = {}
    with _Encoder(components) as encoder:
        for number, planned in enumerate(plan, 1):
            example = planned.example
            if example.path not in skipped:
                try:
                    rows.append(_row(planned, encoder, cache, look))
                    examples[example.path] = example
                except SdloraError as error:
                    if strict:
                        raise
                    skipped[example.path] = str(error)
            if progress:
                progress(number)
    return Encoded(tuple(rows), tuple(examples.values()), tuple(skipped.values()))


class Turn(ExitStack):
    """A turn for networks that wait in the CPU's memory: once begun, they are where the U-Net was, and it waits there, until the block
    is left. Where nothing has to be encoded, nothing moves."""

    def __init__(self, components: Components, networks: Iterable[nn.Module]):
        super().__init__()
        self.components, self.networks, self.where, self.begun = components, tuple(networks), components.device, False

    def begin(self) -> None:
        if not self.begun:
            self.begun = True
            self.enter_context(hardware.resident([self.components.unet], torch.device("cpu")))
            self.enter_context(hardware.resident(self.networks, self.where))


class _Encoder(Turn):
    """The VAE's."""

    def __init__(self, components: Components):
        super().__init__(components, [components.vae])
        vae: Any = components.vae
        # what latents depend on beside the pixels
        self.facts: Facts = (weights_hash(vae), str(vae.dtype), self.where.type, vae.use_tiling)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(3, H, W) -> (c, h, w)."""
        self.begin()
        return latents.encode_image(self.components, pixels[None])[0]


def _row(planned: Planned, encoder: _Encoder, cache: Cache, look: Look) -> Row:
    picture = _Picture(planned.example, encoder, cache, look)
    views = tuple(tuple(picture.view(crop, mirrored) for mirrored in ((False, True) if look.flip else (False,))) for crop in planned.crops)
    return Row(views, planned.wordings, planned.key, planned.turns, planned.example.repeats, planned.example.weight)


@dataclass
class _Picture:
    """A picture file, opened when something of it is not in the cache, and once."""

    example: Example
    encoder: _Encoder
    cache: Cache
    look: Look
    opened: dict[str, Any] = field(default_factory=dict)

    def view(self, crop: Crop, mirrored: bool) -> View:
        return View(self.latents(crop, mirrored), crop.sizes(mirrored), self.mask(crop, mirrored) if self.example.mask else None)

    def latents(self, crop: Crop, mirrored: bool) -> Tensor:
        def make() -> dict[str, Tensor]:
            pixels = pictures.to_tensor(pictures.cut(self.whole(), crop.box, crop.size))
            return {"latents": self.encoder(pixels.flip(-1) if mirrored else pixels)}

        facts = ("latents", *self.encoder.facts, *self.seen(crop, mirrored), self.look.background)
        return self.cache.get(facts, make)["latents"].float()

    def mask(self, crop: Crop, mirrored: bool) -> Tensor:
        path, factor = self.example.mask, self.encoder.components.factor
        assert path is not None
        own = path == self.example.path

        def make() -> dict[str, Tensor]:
            grey = pictures.mask(path, self.upright(), own)
            size = (crop.size[0] // factor, crop.size[1] // factor)
            small = torch.ones(1, *size) if grey is None else pictures.shrunk(grey, crop.box, size)
            return {"mask": small.flip(-1) if mirrored else small}

        return self.cache.get(("masks", digest(path), own, factor, *self.seen(crop, mirrored)), make)["mask"]

    def seen(self, crop: Crop, mirrored: bool) -> tuple[object, ...]:
        """The facts of which pixels are looked at."""
        return self.example.digest, crop.whole, crop.size, crop.top, crop.left, mirrored

    def upright(self) -> Image.Image:
        if "upright" not in self.opened:
            self.opened["upright"] = pictures.upright(self.example.path)
        return self.opened["upright"]

    def whole(self) -> Image.Image:
        if "whole" not in self.opened:
            self.opened["whole"] = pictures.flattened(self.upright(), self.look.background)
        return self.opened["whole"]


def without_blank_masks(data: Encoded) -> Encoded:
    """The same with no mask at all where every mask is 1 everywhere: where nothing is transparent, say."""
    views = [view for row in data.rows for crop in row.views for view in crop]
    if any(view.mask is not None and bool((view.mask != 1).any()) for view in views):
        return data
    bare = (replace(row, views=tuple(tuple(replace(view, mask=None) for view in crop) for crop in row.views)) for row in data.rows)
    return replace(data, rows=tuple(bare))


def encoders_of(components: Components) -> Facts:
    """What embeddings depend on beside the tokens."""
    encoders: Iterable[Any] = components.text_encoders
    return tuple((weights_hash(encoder), str(encoder.dtype), components.device.type) for encoder in encoders)


def embedding(
    caption: str | None,
    components: Components,
    cache: Cache,
    clip_skip: int = 1,
    chunks: int = conditioning.CHUNKS,
    encoders: Facts | None = None,
    begin: Callable[[], None] = lambda: None,
) -> Conditioning:
    """(1, 77 k, width) for a caption of k chunks of 75 tokens, at most `chunks`; None is no caption (`conditioning.encode_absent`).

    encoders    `encoders_of(components)`, if it is known already
    begin       called before the text encoders are: Turn.begin, say
    """
    ids = conditioning.chunk_tokens(components, caption or "", chunks)
    absent = caption is None and components.zeros_for_empty

    def make() -> dict[str, Tensor]:
        begin()
        with torch.no_grad():
            hint = conditioning.encode_chunks(components, [ids], clip_skip)
        if absent:
            hint = conditioning.masked(hint, torch.zeros(1, dtype=torch.bool, device=hint.context.device))
        return {"context": hint.context} | ({} if hint.pooled is None else {"pooled": hint.pooled})

    facts = ("text", encoders or encoders_of(components), [own.tolist() for own in ids], clip_skip, absent)
    kept = cache.get(facts, make)
    return Conditioning(kept["context"], kept.get("pooled")).to(dtype=torch.float32)
