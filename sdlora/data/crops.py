"""A contact sheet of how every picture will be cropped: what is cut off is dark, what is seen has a frame."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from sdlora import sheet
from sdlora.data import pictures
from sdlora.data.buckets import Crop
from sdlora.errors import SdloraError

COLOURS = ("#ff2d2d", "#2d8cff", "#16a34a", "#d97706", "#9333ea")  # of the resolutions, one after the other
COLUMNS, ROWS = 8, 25  # of a sheet; more pictures make more sheets
SHADE = 0.35  # of the brightness of what is cut off
LINE = 2  # pixels


def write(shown: Sequence[tuple[Path, Sequence[Crop]]], path: Path, title: str = "", background: str = "white") -> list[Path]:
    """Sheets of all pictures with their crops; the files written: `path`, and where one is not enough NAME-2.png, …"""
    cells = [cell for file, crops in shown if (cell := _cell(file, crops, background))]
    pages = [cells[i : i + COLUMNS * ROWS] for i in range(0, len(cells), COLUMNS * ROWS)]
    written = []
    for number, page in enumerate(pages, 1):
        place = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        rows = [page[i : i + COLUMNS] for i in range(0, len(page), COLUMNS)]
        images, labels = ([[cell[part] for cell in row] for row in rows] for part in (0, 1))
        sheet.contact_sheet(images, (), (), place, title, labels)  # type: ignore[arg-type]
        written.append(place)
    return written


def _cell(file: Path, crops: Sequence[Crop], background: str) -> tuple[Image.Image, str] | None:
    try:
        picture = pictures.read(file, background)
    except SdloraError:
        return None
    cell, inner = Image.new("RGB", (sheet.SIDE, sheet.SIDE), sheet.PAPER), drawn(picture, crops)
    cell.paste(inner, ((sheet.SIDE - inner.width) // 2, (sheet.SIDE - inner.height) // 2))
    return cell, f"{file.name} {words(crops)}"


def words(crops: Sequence[Crop]) -> str:
    """Sizes in the file and in training, and what is lost."""
    whole = crops[0].whole
    parts = dict.fromkeys(f"{crop.size[1]}×{crop.size[0]} −{crop.lost:.0%}" for crop in crops)
    return f"{whole[1]}×{whole[0]} → {', '.join(parts)}"


def drawn(picture: Image.Image, crops: Sequence[Crop]) -> Image.Image:
    """The picture, its longer side as long as the sheet's, with a frame around each crop; a colour for each size."""
    scale = sheet.SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    light = picture.resize(size, Image.Resampling.LANCZOS)
    result = Image.blend(Image.new("RGB", size), light, SHADE)
    frames = [tuple(round(edge * scale) for edge in crop.box) for crop in crops]
    for frame in frames:
        result.paste(light.crop(frame), frame[:2])  # type: ignore[arg-type]
    pen, kinds = ImageDraw.Draw(result), list(dict.fromkeys(crop.size for crop in crops))
    for crop, (left, upper, right, lower) in zip(crops, frames, strict=True):
        pen.rectangle((left, upper, right - 1, lower - 1), outline=COLOURS[kinds.index(crop.size) % len(COLOURS)], width=LINE)
    return result
