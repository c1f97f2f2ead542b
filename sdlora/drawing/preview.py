"""What a picture is going to be, while it is drawn: latents to colours by one 4 → 3 matrix, at a pixel per latent.

The matrix is fitted to the VAE at hand, by least squares over pictures of soft colours that its encoder maps to latents: so it holds for
every VAE, with no table of numbers for known ones. It costs one call of the encoder, once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sdlora import latents
from sdlora.atomic import replacing
from sdlora.errors import SdloraError
from sdlora.generation.sampler import State
from sdlora.models import Components

NAME = "preview.png"
SAMPLES, SIDE = 24, 8  # pictures that are fitted to, and their sides in latents
SHOWN = 256  # pixels, about: the side of a picture in the preview
MOST = 16  # pictures in it


@dataclass(frozen=True, eq=False)
class Preview:
    """rgb = weight · latent + bias, in [−1, 1]."""

    weight: Tensor  # (3, 4) fp32
    bias: Tensor  # (3,) fp32

    @classmethod
    def fitted(cls, components: Components) -> "Preview":
        """The least-squares fit for the base's VAE; the same for the same VAE."""
        colours = soft_colours(SAMPLES, SIDE * components.factor)
        codes = latents.encode_image(components, colours).float().cpu()
        small = torch.nn.functional.avg_pool2d(colours, components.factor)
        x = codes.movedim(1, -1).reshape(-1, codes.shape[1]).double()
        y = small.movedim(1, -1).reshape(-1, 3).double()
        solution = torch.linalg.lstsq(torch.cat([x, torch.ones_like(x[:, :1])], 1), y).solution
        return cls(solution[:-1].T.float().contiguous(), solution[-1].float())

    def colours(self, codes: Tensor) -> Tensor:
        """(n, 4, h, w) latents -> (n, 3, h, w) in [−1, 1]."""
        codes = codes.detach().float().cpu()
        return (torch.einsum("oc,nchw->nohw", self.weight, codes) + self.bias.view(1, 3, 1, 1)).clamp(-1, 1)

    def images(self, codes: Tensor) -> list[Image.Image]:
        """A small RGB picture for each."""
        levels = ((self.colours(codes) / 2 + 0.5) * 255).round().to(torch.uint8)
        return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in levels]


def soft_colours(count: int, side: int) -> Tensor:
    """(count, 3, side, side) in [−1, 1]: colours that change slowly over the picture, always the same."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand((count, 3, 3, 3), generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(corners, size=(side, side), mode="bilinear", align_corners=True)


def each(components: Components, every: int, show: Callable[[list[Image.Image], State], None]) -> Callable[[State], None]:
    """A callback for `generate`: after every so many steps, and after the last, `show` gets the pictures as they will be.

    generate(components, requests, callback=each(components, 5, lambda images, state: images[0].show()))
    """
    if every < 1:
        raise SdloraError(f"preview is {every}; it is a number of steps, at least 1")
    fitted: list[Preview] = []

    def after(state: State) -> None:
        if state.step % every == 0 or state.step == state.steps:
            if not fitted:
                fitted.append(Preview.fitted(components))
            show(fitted[0].images(state.denoised), state)

    return after


def to_file(components: Components, path: Path, every: int) -> Callable[[State], None]:
    """`each` into one file, which is whole at any moment: the batch's pictures side by side."""

    def show(pictures: list[Image.Image], state: State) -> None:
        shown = pictures[:MOST]
        times = max(1, round(SHOWN / max(shown[0].size)))
        width, height = (side * times for side in shown[0].size)
        across = min(len(shown), 4)
        strip = Image.new("RGB", (across * width, -(-len(shown) // across) * height))
        for i, picture in enumerate(shown):
            strip.paste(picture.resize((width, height), Image.Resampling.BICUBIC), (i % across * width, i // across * height))
        try:
            with replacing(path) as temporary:
                strip.save(temporary, format="PNG")
        except OSError:
            pass  # a preview that cannot be written is no reason to lose the picture

    return each(components, every, show)
