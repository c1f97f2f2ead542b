"""From the first pass of a hires picture to what its second pass starts from: latents upscaled, or the picture itself."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sdlora.errors import SdloraError, nearest
from sdlora.latents import encode_image
from sdlora.models import Components

Decode = Callable[[Tensor], Image.Image]  # (1, 4, h, w) -> RGB


@dataclass(frozen=True)
class Upscaler:
    name: str  # AUTOMATIC1111's
    mode: str = ""  # torch.nn.functional.interpolate's, for latents; none for pixels
    antialias: bool = False
    filter: Image.Resampling = Image.Resampling.NEAREST  # PIL's, for pixels

    def __call__(self, components: Components, latents: Tensor, size: tuple[int, int], decode: Decode) -> Tensor:
        """(n, 4, h, w) scaled latents -> (n, 4, *size); pixels go through the VAE, one picture at a time."""
        if self.mode:
            return functional.interpolate(latents, size=size, mode=self.mode, antialias=self.antialias)
        from sdlora.data.pictures import to_tensor

        height, width = (side * components.factor for side in size)
        images = [decode(one).resize((width, height), self.filter) for one in latents.split(1)]
        return torch.cat([encode_image(components, to_tensor(image)[None]) for image in images]).to(latents)


UPSCALERS = {
    row.name: row
    for row in (
        Upscaler("Latent", "bilinear"),
        Upscaler("Latent (antialiased)", "bilinear", antialias=True),
        Upscaler("Latent (bicubic)", "bicubic"),
        Upscaler("Latent (bicubic antialiased)", "bicubic", antialias=True),
        Upscaler("Latent (nearest)", "nearest"),
        Upscaler("Latent (nearest-exact)", "nearest-exact"),
        Upscaler("Lanczos", filter=Image.Resampling.LANCZOS),
        Upscaler("Nearest", filter=Image.Resampling.NEAREST),
    )
}


def upscaler(text: str) -> Upscaler:
    """ "Latent (nearest)", "latent-nearest", "latent nearest" -> its row. SdloraError for what is none."""
    known = {_short(name): row for name, row in UPSCALERS.items()}
    if _short(text) not in known:
        raise SdloraError(f"unknown upscaler {text!r}{nearest(text.lower(), [_dashed(name) for name in UPSCALERS])}")
    return known[_short(text)]


def _short(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def _dashed(name: str) -> str:
    return re.sub(r"[^a-z]+", "-", name.lower()).strip("-")
