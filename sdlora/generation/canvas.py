"""Pictures and masks brought to the size that is drawn, and the drawn picture pasted back: pure functions of PIL pictures.

The ways are AUTOMATIC1111's: resize modes, the mask's blur and its doubled weight, the region of "only masked". Sizes are
(width, height) and boxes (left, top, right, bottom), as PIL has them.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

Size = tuple[int, int]
Box = tuple[int, int, int, int]

LANCZOS = Image.Resampling.LANCZOS
RESIZES = (
    "crop",
    "fit",
    "stretch",
)  # what happens to a picture of another shape; A1111: "crop and resize", "resize and fill", "just resize"


FILLS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))  # radii in pixels, and how often each layer is laid on: A1111's masking.fill


@dataclass(frozen=True, eq=False)
class Paste:
    """Where a drawn picture goes."""

    onto: Image.Image  # RGB
    weight: Image.Image  # L, of the same size: 255 is the drawn picture, 0 is `onto` bit for bit
    box: Box | None = None  # the part of `onto` that was drawn; None is all of it

    def __call__(self, drawn: Image.Image) -> Image.Image:
        if self.box is not None:
            whole = self.onto.copy()
            left, top, right, bottom = self.box
            whole.paste(unfitted(drawn, (right - left, bottom - top)), self.box)
            drawn = whole
        return Image.composite(drawn, self.onto, self.weight)


def fitted(image: Image.Image, size: Size, how: str) -> Image.Image:
    """`image` at `size`, itself where it has that size already.

    crop     as much of the middle as has the shape
    fit      all of it, and the pixels of its edges repeated where it does not reach
    stretch  all of it, out of proportion
    """
    if image.size == size:
        return image
    if how == "crop":
        return ImageOps.fit(image, size, LANCZOS)
    if how == "stretch":
        return image.resize(size, LANCZOS)
    left, top, right, bottom = _within(image.size, size)
    inner = np.asarray(image.resize((right - left, bottom - top), LANCZOS))
    around = ((top, size[1] - bottom), (left, size[0] - right), *[(0, 0)] * (inner.ndim - 2))
    return Image.fromarray(np.pad(inner, around, mode="edge"))


def unfitted(image: Image.Image, size: Size) -> Image.Image:
    """Back from what `fitted(…, how="fit")` made of a picture of `size`."""
    if image.size == size:
        return image
    return image.resize(size, LANCZOS, box=_within(size, image.size))


def _within(inner: Size, outer: Size) -> Box:
    """Where a picture of the shape `inner`, as large as it goes, lies in the middle of `outer`."""
    scale = min(outer[0] / inner[0], outer[1] / inner[1])
    width, height = (min(limit, max(1, round(side * scale))) for side, limit in zip(inner, outer, strict=True))
    left, top = (outer[0] - width) // 2, (outer[1] - height) // 2
    return left, top, left + width, top + height


def blurred(mask: Image.Image, sigma: float) -> Image.Image:
    """L, by a Gaussian of `sigma` pixels, cut off at 2.5 σ; what is 0 further than that from every other value stays 0."""
    reach = int(2.5 * sigma + 0.5)
    if reach == 0:
        return mask
    from scipy import ndimage  # a tenth of a second to import

    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    levels = np.asarray(mask, np.float64)
    for axis in (0, 1):
        levels = ndimage.correlate1d(levels, kernel, axis=axis, mode="mirror").round()
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """RGB: the part where `mask` (L, as large) is white in the colours of what is around it, and nothing of what was there.

    What is left of the picture is blurred, with weights, far and then ever less, and each laid over the one before; so a place has
    the colours of the nearest blur that reaches it. Where the mask is 0 the picture stays as it is, bit for bit.
    """
    whole = image.convert("RGB").convert("RGBA").convert("RGBa")
    weighted = Image.composite(whole, Image.new("RGBa", image.size), ImageOps.invert(mask))
    result = Image.new("RGBA", image.size)
    for radius, times in FILLS:
        layer = weighted.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            result = Image.alpha_composite(result, layer)
    return result.convert("RGB")


def doubled(mask: Image.Image) -> Image.Image:
    """The weight of the drawn picture: all of it where the blurred mask is at its middle or above, falling off outside."""
    return mask.point([min(2 * level, 255) for level in range(256)])


def latent_mask(mask: Image.Image, size: Size, soft: bool = False) -> Tensor:
    """(1, 1, h, w) fp32 from 0 to 1: how far each latent is redrawn. Without `soft` it is, or is not, as in AUTOMATIC1111."""
    levels = np.asarray(mask.resize(size, Image.Resampling.BICUBIC), np.float32) / 255
    return torch.from_numpy(levels if soft else np.around(levels))[None, None]


def region(mask: Image.Image, padding: int, shape: Size) -> Box | None:
    """What is drawn by itself: all of the mask that is not 0, `padding` pixels more on each side, widened to the proportions of `shape`.

    It stays inside of the picture, if need be out of proportion. None for a mask that is 0 everywhere.
    """
    box = mask.getbbox()
    if box is None:
        return None
    left, top = max(box[0] - padding, 0), max(box[1] - padding, 0)
    right, bottom = min(box[2] + padding, mask.width), min(box[3] + padding, mask.height)
    left, right = _widened(left, right, math.ceil((bottom - top) * shape[0] / shape[1]), mask.width)
    top, bottom = _widened(top, bottom, math.ceil((right - left) * shape[1] / shape[0]), mask.height)
    return left, top, right, bottom


def _widened(low: int, high: int, wanted: int, limit: int) -> tuple[int, int]:
    """low … high about its middle to `wanted`, if that is more, inside of 0 … limit."""
    length = min(max(wanted, high - low), limit)
    start = min(max((low + high - length) // 2, 0), limit - length)
    return start, start + length
