"""One picture file as the tensor that the VAE sees: upright, on white, resized and cropped to a square."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sdlora.errors import SdloraError

ORIENTATION, LYING = 0x0112, 5  # an EXIF tag, and its first value that stands for a quarter turn


def check(path: Path) -> None:
    """SdloraError unless `path` looks like a whole picture. Cheap: reads the header and check sums, decodes nothing."""
    try:
        with Image.open(path) as image:
            image.verify()
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise _corrupt(path, error) from error


def read(path: Path) -> Image.Image:
    """The picture in RGB: turned as its EXIF data says, transparency composited on white. Of an animation, the first frame."""
    try:
        with Image.open(path) as image:
            image.load()
            return flattened(ImageOps.exif_transpose(image))
    except Exception as error:
        raise _corrupt(path, error) from error


def extent(path: Path) -> tuple[int, int]:
    """(height, width) in pixels of the picture once it is upright. Reads the header alone."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(ORIENTATION, 1) >= LYING else (height, width)
    except Exception as error:
        raise _corrupt(path, error) from error


def flattened(image: Image.Image, colour: str = "white") -> Image.Image:
    """RGB, on `colour`; convert("RGB") alone would bring out the colours hidden under transparent pixels."""
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits a channel
        grey = np.asarray(image, dtype=np.float64)
        return Image.fromarray(np.uint8(np.clip(grey / 257 + 0.5, 0, 255))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, colour), rgba).convert("RGB")
    return image.convert("RGB")


def square(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square of the picture, `size` pixels wide (Lanczos)."""
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS, centering=(0.5, 0.5))


def to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) fp32 in [−1, 1]."""
    return torch.from_numpy(np.asarray(image, np.float32).copy()).permute(2, 0, 1) / 127.5 - 1


def _corrupt(path: Path, error: Exception) -> SdloraError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(f" '{path}'", "")
    return SdloraError(f"{path} is not a readable image ({reason}); replace it or take it out of the folder")
