"""The pictures that a picture is made from, init and mask: from disk or memory, upright, without transparency."""

import hashlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from PIL import Image, ImageColor, ImageOps

from sdlora.errors import SdloraError, nearest

Source = str | Path | Image.Image

ALPHA = "alpha"  # in place of a mask's file: what is transparent in the init picture is redrawn


def picture(source: Source, background: str = "white") -> Image.Image:
    """RGB, turned as its EXIF data says, transparency composited on `background`. SdloraError if it cannot be read."""
    from sdlora.data.pictures import flattened  # a picture from noise needs nothing of what reads folders

    return flattened(_upright(source), background)


def mask(source: Source, init: Source) -> Image.Image:
    """L: 255 is redrawn, 0 stays. `source` may be ALPHA. SdloraError if it cannot be read, or has another size than `init`."""
    from sdlora.data.pictures import flattened, opacity

    if source == ALPHA:
        clear = opacity(_upright(init))
        if clear is None:
            raise SdloraError(f"mask is alpha, and {name(init)} has no transparency; give a picture as mask, white where it is redrawn")
        return ImageOps.invert(clear)
    image = flattened(_upright(source), "black").convert("L")
    height, width = extent(init)
    if image.size != (width, height):
        found = f"the mask {name(source)} has {image.width} × {image.height} pixels and {name(init)} {width} × {height}"
        raise SdloraError(f"{found}; make the mask as large as the picture that it belongs to")
    return image


def extent(source: Source) -> tuple[int, int]:
    """(height, width) in pixels of the picture once it is upright. Of a file, the header alone is read."""
    try:
        with _opened(source) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(0x0112, 1) >= 5 else (height, width)
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise _unreadable(source, error) from error


def check_colour(background: str) -> None:
    try:
        ImageColor.getrgb(background)
    except ValueError as error:
        end = nearest(background.lower(), ImageColor.colormap)
        end = end if end.startswith("; did") else "; write it as #ffffff, or as CSS calls it"
        raise SdloraError(f"background is {background!r}, which is no colour{end}") from error


def name(source: Source) -> str:
    return Path(source).name if isinstance(source, str | Path) else "a picture in memory"


def described(source: Source) -> dict[str, Any]:
    """For the record: the file's name and sha256; of a picture in memory the sha256 of its pixels. SdloraError without the file."""
    if isinstance(source, str | Path):
        try:
            return {"file": Path(source).name, "sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest()}
        except OSError as error:
            raise _unreadable(source, error) from error
    return {"file": None, "sha256": hashlib.sha256(source.tobytes()).hexdigest()}


def _upright(source: Source) -> Image.Image:
    """In the mode that it has. Of an animation, the first frame."""
    try:
        with _opened(source) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except Exception as error:
        raise _unreadable(source, error) from error


def _opened(source: Source) -> AbstractContextManager[Image.Image]:
    """A file is closed afterwards; what is in memory stays as it is."""
    return Image.open(source) if isinstance(source, str | Path) else nullcontext(source)


def _unreadable(source: Source, error: Exception) -> SdloraError:
    if isinstance(error, FileNotFoundError):
        return SdloraError(f"there is no picture {source}; check the path")
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(f" '{source}'", "")
    return SdloraError(f"{source} is not a readable picture ({reason}); give a PNG, JPEG or WebP")
