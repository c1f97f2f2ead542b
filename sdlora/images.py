"""Pictures that carry their settings, as PNG, JPEG or WebP: AUTOMATIC1111's text for people and other tools, JSON to read back exactly.

In a PNG both are text chunks. In JPEG and WebP they are EXIF: the text is the UserComment, in the form of AUTOMATIC1111 (piexif's
"UNICODE" and UTF-16, big-endian), and the JSON the MakerNote.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from sdlora import infotext
from sdlora.atomic import replacing
from sdlora.errors import SdloraError, nearest
from sdlora.infotext import Infotext

TEXT, JSON = "parameters", "sdlora"  # the names of the two chunks
EXIF, COMMENT, NOTE = 0x8769, 0x9286, 0x927C  # the IFD, UserComment and MakerNote
UNICODE, OURS = b"UNICODE\0", b"sdlora\0\0"  # what the two begin with
FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
QUALITY = 95  # of JPEG and WebP
MOST = 65_533 - 6  # bytes of EXIF in a JPEG


@dataclass(frozen=True)
class Carried:
    """What a picture says of itself."""

    settings: dict[str, Any] | None  # as generation/record.py makes them; only sdlora's own pictures have them
    text: Infotext | None


def format_of(name: str) -> str:
    """ "png", "jpeg" or "webp"; SdloraError for others."""
    short = {"jpg": "jpeg"}.get(name.lower().removeprefix("."), name.lower().removeprefix("."))
    if short not in FORMATS:
        raise SdloraError(f"unknown image format {name!r}{nearest(short, FORMATS)}")
    return short


def check_quality(kind: str, quality: int | None) -> None:
    """SdloraError for a quality that the format `kind` does not have."""
    if quality is not None and (kind == "png" or not 1 <= quality <= 100):
        raise SdloraError(f"quality is {quality}; it is a number from 1 to 100 for jpeg and webp, and png has none")


def save(image: Image.Image, path: str | Path, settings: Mapping[str, Any], quality: int | None = None) -> None:
    """Write `image` to `path`, whole or not at all, in the format of its ending. `settings` is anything that JSON can hold.

    quality: 1 to 100, of JPEG and WebP, 95 by default.
    """
    kind = format_of(Path(path).suffix)
    check_quality(kind, quality)
    text = infotext.written(settings) if "prompt" in settings else ""
    if kind == "png":
        options: dict[str, Any] = {"pnginfo": _chunks(text, json.dumps(settings))}
    else:
        options = {"exif": _exif(text, json.dumps(settings, ensure_ascii=False), kind), "quality": quality or QUALITY}
        options |= {"subsampling": 0} if kind == "jpeg" else {"method": 6}
    with replacing(path) as temporary:
        image.save(temporary, format=kind.upper(), **options)


def save_png(image: Image.Image, path: str | Path, settings: Mapping[str, Any]) -> None:
    """`save` for a path that ends in .png."""
    save(image, path, settings)


def carried(path: str | Path) -> Carried:
    """What `save` or another program put into a picture; SdloraError if the file is none, or is damaged."""
    try:
        with Image.open(path) as image:
            image.load()  # chunks may follow the pixels
            note, comment = image.info.get(JSON), image.info.get(TEXT)
            tags = image.getexif().get_ifd(EXIF)
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = getattr(error, "strerror", None) or error
        raise SdloraError(f"cannot read {path} as a picture: {reason}; give a PNG, JPEG or WebP that is whole") from error
    if note is None and isinstance(tags.get(NOTE), bytes) and tags[NOTE].startswith(OURS):
        note = tags[NOTE].removeprefix(OURS)
    if comment is None and isinstance(tags.get(COMMENT), bytes):
        comment = _comment(tags[COMMENT])
    try:
        settings = None if note is None else json.loads(note)
    except ValueError as error:
        raise SdloraError(f"the settings in {path} are damaged: {error}; it can be seen, but not drawn again") from error
    if not isinstance(settings, dict | None):
        raise SdloraError(f"the settings in {path} are damaged: they are a {type(settings).__name__}; it can be seen, but not drawn again")
    return Carried(settings, infotext.parsed(comment) if isinstance(comment, str) and comment.strip() else None)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that `save` wrote; SdloraError if the file is no picture or carries none."""
    settings = carried(path).settings
    if settings is None:
        raise SdloraError(f"{path} carries no settings of sdlora; only its own pictures do, and many programs drop them on saving")
    return settings


def _chunks(text: str, note: str) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    if text:
        chunks.add_text(TEXT, text)
    chunks.add_text(JSON, note)
    return chunks


def _exif(text: str, note: str, kind: str) -> bytes:
    """Both, or the text alone where a JPEG cannot hold both."""
    comment, maker = UNICODE + text.encode("utf-16-be"), OURS + note.encode()
    data = b""
    for tags in ({NOTE: maker, COMMENT: comment} if text else {NOTE: maker}, {COMMENT: comment}):
        data = _tiff(tags)
        if kind != "jpeg" or len(data) <= MOST:
            return data
    raise SdloraError(f"the prompt is too long for a JPEG, which holds {MOST:,} bytes of settings; choose png or webp")


def _tiff(tags: Mapping[int, bytes]) -> bytes:
    """EXIF with nothing but these tags of its own IFD, byte for byte as piexif writes it (TIFF 6.0, big-endian, type 7: UNDEFINED)."""
    main = struct.pack(">HHHLLL", 1, EXIF, 4, 1, 26, 0)  # one entry, a LONG: where the other IFD lies; and no IFD after this
    entries, data, place = [], b"", 26 + 2 + 12 * len(tags)
    for tag, value in sorted(tags.items()):
        entries.append(struct.pack(">HHLL", tag, 7, len(value), place + len(data)))
        data += value
    return b"Exif\0\0MM\0*" + struct.pack(">L", 8) + main + struct.pack(">H", len(tags)) + b"".join(entries) + data


def _comment(data: bytes) -> str:
    """A UserComment as text: UTF-16 in either order, or what else it says it is."""
    kind, text = data[: len(UNICODE)], data[len(UNICODE) :]
    if kind == UNICODE:
        return text.decode("utf-16-le" if text[1:2] == b"\0" and text[:1] != b"\0" else "utf-16-be", errors="replace")
    return (text if kind.rstrip(b"\0") in (b"ASCII", b"JIS", b"") else data).decode("utf-8", errors="replace")
