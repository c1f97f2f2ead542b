"""What a picture that is no picture from noise starts from: its init picture as latents, which of them are redrawn, and the way back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sdlora.errors import SdloraError
from sdlora.generation import canvas, noise, sources
from sdlora.generation.canvas import Paste
from sdlora.generation.passes import Side, size
from sdlora.generation.request import Request
from sdlora.generation.sources import Source
from sdlora.latents import encode_image
from sdlora.models import Components


@dataclass(frozen=True)
class Origin:
    """What of a request decides its start; equal ones share it."""

    size: Side
    init: Source = field(hash=False)
    background: str
    resize: str
    mask: Source | None = field(hash=False)
    mask_blur: float
    only_masked: int | None
    filled: bool  # the masked part is painted over before it is encoded
    soft: bool


@dataclass(frozen=True, eq=False)
class Start:
    latents: Tensor  # (1, 4, h, w) fp32
    redrawn: Tensor | None = None  # (1, 1, h, w) fp32, from 0 to 1: how far; None is all of it
    paste: Paste | None = None


def blur(components: Components, request: Request) -> float:
    """Of the mask, σ in pixels."""
    return components.factor / 2 if request.mask_blur is None else request.mask_blur


def origin(components: Components, request: Request) -> Origin:
    assert request.init is not None
    blurred = blur(components, request)
    side = size(components, request)
    filled = request.mask is not None and request.masked_content != "original"
    return Origin(
        side, request.init, request.background, request.resize, request.mask, blurred, request.only_masked, filled, request.soft_mask
    )


def check(requests: Sequence[Request]) -> None:
    """SdloraError if an init picture or a mask cannot be read, or a mask does not belong to its picture; each is looked at once."""
    seen: set[tuple[object, ...]] = set()
    for request in requests:
        pair = (source if isinstance(source, str | Path) else id(source) for source in (request.init, request.mask))
        key = (*pair, request.only_masked is None)
        if request.init is not None and key not in seen:
            sources.extent(request.init)
            if request.mask is not None:
                mask = sources.mask(request.mask, request.init)
                if request.only_masked is not None and mask.getbbox() is None:
                    found = f"only_masked is set, and the mask {sources.name(request.mask)} has nothing white"
                    raise SdloraError(f"{found}; paint white what is to be redrawn")
        seen.add(key)


def start(components: Components, origin: Origin) -> Start:
    """The VAE has to be where it computes."""
    image = sources.picture(origin.init, origin.background)
    height, width = origin.size
    shape = (width, height)
    if origin.mask is None:
        return Start(_encoded(components, canvas.fitted(image, shape, origin.resize)))
    mask = canvas.blurred(sources.mask(origin.mask, origin.init), origin.mask_blur)
    box = None if origin.only_masked is None else canvas.region(mask, origin.only_masked, shape)
    if box is None:
        shown, seen = canvas.fitted(image, shape, origin.resize), canvas.fitted(mask, shape, origin.resize)
        paste = Paste(shown, canvas.doubled(seen))
    else:
        shown, seen = canvas.fitted(image.crop(box), shape, "fit"), canvas.fitted(mask.crop(box), shape, "fit")
        paste = Paste(image, mask, box)
    redrawn = canvas.latent_mask(seen, (width // components.factor, height // components.factor), origin.soft)
    return Start(_encoded(components, canvas.filled(shown, seen) if origin.filled else shown), redrawn, paste)


def originals(requests: Sequence[Request], begun: Sequence[Start]) -> Tensor | None:
    """The latents (n, 4, h, w) of a batch with their masked content; None for pictures from noise.

    Noise there is the seed's own, as AUTOMATIC1111 takes it: the same that the picture then starts with. As there, what is around
    noise or nothing has been encoded beside a filled part: the VAE would see a little of the original otherwise.
    """
    if not begun:
        return None
    return torch.cat([_filled(request, start) for request, start in zip(requests, begun, strict=True)])


def redrawn(begun: Sequence[Start]) -> Tensor | None:
    """(n, 1, h, w) fp32, from 0 to 1, or None where all of every picture is redrawn."""
    if all(start.redrawn is None for start in begun):
        return None
    return torch.cat([torch.ones_like(s.latents[:, :1]) if s.redrawn is None else s.redrawn for s in begun])


def _filled(request: Request, start: Start) -> Tensor:
    if start.redrawn is None or request.masked_content in ("original", "fill"):
        return start.latents
    content = torch.zeros_like(start.latents)
    if request.masked_content == "noise":
        content = next(noise.stream(request.seed, tuple(content.shape[1:]), noise.source_name(request.noise)))[None]
    return torch.where(start.redrawn >= 0.5, content, start.latents)


def _encoded(components: Components, image: Image.Image) -> Tensor:
    from sdlora.data.pictures import to_tensor

    return encode_image(components, to_tensor(image)[None]).float().cpu()
