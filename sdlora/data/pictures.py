"""One picture file as the tensor that the VAE sees: upright, in sRGB, on a background, cut and resized."""

from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from sdlora.errors import SdloraError

ORIENTATION, LYING = 0x0112, (5, 6, 7, 8)  # an EXIF tag, and its values that stand for a quarter turn
UNREAD = (".heic", ".heif", ".jxl")  # of telephones and others: told of, where no copy of the same name lies beside them
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
Box = tuple[float, float, float, float]  # left, upper, right, lower


def problem(path: Path) -> str | None:
    """Why `path` is no whole picture, or None. Cheap: reads the header and check sums, decodes nothing, so that a truncated JPEG
    is found only by `read`."""
    try:
        with Image.open(path) as image:
            image.verify()
    except Exception as error:  # Pillow raises many kinds for damaged files
        return str(_corrupt(path, error))
    return None


def read(path: Path, background: str = "white") -> Image.Image:
    """The picture in sRGB: turned as its EXIF data says, by its own colour profile, transparency on `background`. Of an animation,
    the first frame."""
    return flattened(upright(path), background)


def upright(path: Path) -> Image.Image:
    """The picture in its own mode, turned as its EXIF data says. SdloraError for one that cannot be decoded."""
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except Exception as error:
        raise _corrupt(path, error) from error


def extent(path: Path) -> tuple[int, int]:
    """(height, width) in pixels of the picture once it is upright. Reads the header alone."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(ORIENTATION) in LYING else (height, width)
    except Exception as error:
        raise _corrupt(path, error) from error


def flattened(image: Image.Image, background: str = "white") -> Image.Image:
    """RGB; convert("RGB") alone would bring out the colours hidden under transparent pixels."""
    image = in_srgb(eight_bits(image))
    if not transparent(image):
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB")


def transparent(image: Image.Image) -> bool:
    """Whether the picture has an alpha channel, or a colour that stands for nothing."""
    return image.mode in WITH_ALPHA or "transparency" in image.info


def opacity(image: Image.Image) -> Image.Image | None:
    """The alpha channel as a grey picture, or None."""
    return image.convert("RGBA").getchannel("A") if transparent(image) else None


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits a pixel, or in floating point (0 … 1, or 0 … 255), scaled to 8; everything else as it is."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    grey = np.asarray(image, dtype=np.float64)
    top = 65535.0 if image.mode != "F" else 1.0 if grey.max(initial=0) <= 1 else 255.0
    return Image.fromarray(np.uint8(np.clip(grey * (255 / top) + 0.5, 0, 255)))


def in_srgb(image: Image.Image) -> Image.Image:
    """By the picture's own ICC profile; as it is where it has none, where it is sRGB's, or where it is of no use."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode == "1":
        return image
    alpha = opacity(image)
    plain = image.convert("RGB") if image.mode not in ("RGB", "L", "CMYK") and not image.mode.startswith("L") else image
    plain = plain.convert("L") if plain.mode.startswith("L") and plain.mode != "L" else plain
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if (source.profile.profile_description or "").startswith("sRGB") and plain.mode == "RGB":
            return image
        intent, kept = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        done: Any = ImageCms.profileToProfile(plain, source, _srgb(), intent, "RGB", flags=kept)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image  # damaged, or made for another number of channels: programs that show pictures leave it out as well
    done.info.pop("icc_profile", None)
    done.info.pop("transparency", None)
    if alpha is not None:
        done.putalpha(alpha)
    return done


@lru_cache(maxsize=1)
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


def cut(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """What `box` encloses, (height, width) pixels large (Lanczos)."""
    return image.resize((size[1], size[0]), Image.Resampling.LANCZOS, box=box)


def to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) fp32 in [−1, 1]."""
    return torch.from_numpy(np.asarray(image, np.float32).copy()).permute(2, 0, 1) / 127.5 - 1


def mask(path: Path, whole: Image.Image, own: bool) -> Image.Image | None:
    """A grey picture of `whole`'s size, white where the loss counts: the opacity of the picture itself if `own`, None where it has
    none; else the brightness of the file `path`, enlarged to fit."""
    if own:
        return opacity(whole)
    grey = flattened(upright(path), "black").convert("L")
    return grey if grey.size == whole.size else grey.resize(whole.size, Image.Resampling.BOX)


def shrunk(grey: Image.Image, box: Box, size: tuple[int, int]) -> Tensor:
    """(1, h, w) fp32 in [0, 1]: the mean of what each cell of `size` covers."""
    wide = Image.fromarray(np.asarray(grey, np.float32))  # in floating point, so that nothing is rounded
    small = wide.resize((size[1], size[0]), Image.Resampling.BOX, box=box)
    return (torch.from_numpy(np.array(small, np.float32)) / 255).clamp(0, 1)[None]


def _corrupt(path: Path, error: Exception) -> SdloraError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(f" '{path}'", "")
    if path.suffix.lower() in UNREAD:
        reason = f"Pillow does not read {path.suffix.lower()}; save it as PNG or JPEG"
    return SdloraError(f"{path} is not a readable image ({reason}); replace it or take it out of the folder")
