"""What a picture is going to be, while it is drawn: latents to colours by one 4 → 3 matrix, at a pixel per latent.

The matrix is fitted by least squares to the VAE at hand: to coloured shapes that its encoder maps to latents, and to what its decoder
makes of the first latents that are shown, which look like all that follow. So it holds for every VAE, with no table of numbers for known
ones, and costs one call of each per batch. On the embedded base it explains 0.96 of the variance of real pictures, as much as a fit to the
very pictures; shapes alone 0.84, random latents 0.78.
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
SAMPLES, SIDE = 24, 16  # coloured shapes that are fitted to, and their sides in latents
LARGEST = 32  # latents: the side of what is decoded for the fit
OWN = 8.0  # the weight of what was decoded against that of the shapes
SHOWN = 256  # pixels, about: the side of a picture in the preview
MOST = 16  # pictures in it


@dataclass(frozen=True, eq=False)
class Preview:
    """rgb = weight · latent + bias, in [−1, 1]."""

    weight: Tensor  # (3, 4) fp32
    bias: Tensor  # (3,) fp32

    @classmethod
    def fitted(cls, components: Components, codes: Tensor | None = None) -> "Preview":
        """The least-squares fit for the base's VAE; `codes` (n, 4, h, w) are latents of the kind that will be shown."""
        shapes = coloured_shapes(SAMPLES, SIDE * components.factor)
        x, y = _pairs(latents.encode_image(components, shapes), shapes, components.factor)
        if codes is not None:
            top, left = (max(0, side - LARGEST) // 2 for side in codes.shape[2:])
            part = codes[:1, :, top : top + LARGEST, left : left + LARGEST]
            own_x, own_y = _pairs(part, latents.decode(components, part), components.factor)
            if torch.isfinite(own_x).all() and torch.isfinite(own_y).all():  # a picture that turned into NaN is told of elsewhere
                weight = (OWN * len(x) / len(own_x)) ** 0.5
                x, y = torch.cat([x, own_x * weight]), torch.cat([y, own_y * weight])
        solution = torch.linalg.lstsq(x, y).solution
        return cls(solution[:-1].T.float().contiguous(), solution[-1].float())

    def colours(self, codes: Tensor) -> Tensor:
        """(n, 4, h, w) latents -> (n, 3, h, w) in [−1, 1]."""
        codes = codes.detach().float().cpu()
        return (torch.einsum("oc,nchw->nohw", self.weight, codes) + self.bias.view(1, 3, 1, 1)).clamp(-1, 1)

    def images(self, codes: Tensor) -> list[Image.Image]:
        """A small RGB picture for each; NaN is black."""
        levels = ((self.colours(codes) / 2 + 0.5) * 255).nan_to_num(0).round().to(torch.uint8)
        return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in levels]


def coloured_shapes(count: int, side: int) -> Tensor:
    """(count, 3, side, side) in [−1, 1]: boxes and ellipses on white, black and coloured grounds; always the same."""
    generator = torch.Generator().manual_seed(0)
    grounds = torch.rand((count, 3, 1, 1), generator=generator) * 2 - 1
    grounds[: count // 3], grounds[count // 3 : count // 2] = 1.0, -1.0
    pictures = grounds.expand(count, 3, side, side).clone()
    at = torch.arange(side, dtype=torch.float32)
    for picture in pictures:
        for shape in range(4):
            centre, radius = torch.rand((2, 2), generator=generator) * side
            colour = torch.rand((3, 1), generator=generator) * 2 - 1
            y, x = (((at - c) / (0.1 * side + 0.3 * r)).abs() for c, r in zip(centre, radius, strict=True))
            inside = y[:, None] ** 2 + x**2 < 1 if shape % 2 else (y[:, None] < 1) & (x < 1)
            picture[:, inside] = colour
    return pictures


def _pairs(codes: Tensor, pixels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Latents with a column of ones, and the mean colour below each of them: (m, 5) and (m, 3), fp64."""
    small = torch.nn.functional.avg_pool2d(pixels.float().cpu(), factor)
    x, y = (values.detach().float().cpu().movedim(1, -1).flatten(0, 2).double() for values in (codes, small))
    return torch.cat([x, torch.ones_like(x[:, :1])], 1), y


def each(components: Components, every: int, show: Callable[[list[Image.Image], State], None]) -> Callable[[State], None]:
    """A callback for `generate`: after every so many steps, and after the last, `show` gets the pictures as they will be.

    generate(components, requests, callback=each(components, 5, lambda images, state: images[0].show()))
    """
    if every < 1:
        raise SdloraError(f"preview is {every}; it is a number of steps, at least 1")
    fitted: list[Preview] = []  # to the batch at hand

    def after(state: State) -> None:
        if state.step == 1:  # another batch has begun, which may look quite different
            fitted.clear()
        if state.step % every == 0 or state.step == state.steps:
            if not fitted:
                fitted.append(Preview.fitted(components, state.denoised))
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
        except (OSError, SdloraError):
            pass  # a preview that cannot be written is no reason to lose the picture

    return each(components, every, show)
