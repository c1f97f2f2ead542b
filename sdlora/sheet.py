"""A contact sheet: pictures in rows and columns with labels and a title, drawn by PIL in a font that every installation has."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sdlora.atomic import replacing

SIDE = 192  # pixels, about: the longer side of a picture on the sheet
GAP, MARGIN = 6, 14
LABEL_WIDTH = 190  # of the row labels, at the most
SIZES = (15, 14, 13, 12, 11, 10)  # of letters; labels take the first that fits
TITLE_SIZE = 19
INK, PAPER, EMPTY = "#222222", "white", "#eeeeee"

Picture = Image.Image | None  # None leaves its place empty
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@lru_cache
def font(size: int) -> Font:
    """DejaVu Sans, which matplotlib brings along, for its Greek and Cyrillic letters; else PIL's own, which has Latin ones only."""
    spec = find_spec("matplotlib")  # finds the folder without importing anything
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size=size)


@dataclass(frozen=True)
class Block:
    """A label, broken into lines."""

    lines: tuple[str, ...]
    size: int  # of the letters, pixels

    @property
    def width(self) -> int:
        return max((_width(line, self.size) for line in self.lines), default=0)

    @property
    def height(self) -> int:
        return len(self.lines) * _leading(self.size) if any(self.lines) else 0


def contact_sheet(
    rows: Sequence[Sequence[Picture]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    path: str | Path,
    title: str = "",
    cell_labels: Sequence[Sequence[str]] = (),
) -> None:
    """Write `rows` of pictures to `path`. Label lists may be empty; small pictures are enlarged by whole numbers.

    `cell_labels`, in rows like the pictures, stand beneath each of them.
    """
    with replacing(path) as temporary:
        draw_sheet(rows, row_labels, column_labels, title, cell_labels).save(temporary)


def draw_sheet(
    rows: Sequence[Sequence[Picture]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str = "",
    cell_labels: Sequence[Sequence[str]] = (),
) -> Image.Image:
    """The sheet as an RGB picture; see `contact_sheet`."""
    cells = [[enlarged(picture) if picture else None for picture in row] for row in rows]
    for row, texts in zip(cells, cell_labels, strict=False):
        row[:] = [labelled(cell, text) if cell else None for cell, text in zip(row, texts, strict=True)]
    columns = max((len(row) for row in cells), default=0)
    width = max((c.width for row in cells for c in row if c), default=SIDE)
    height = max((c.height for row in cells for c in row if c), default=SIDE)
    sides = [fitted(label, LABEL_WIDTH, height) for label in row_labels]
    tops = [fitted(label, width, 5 * SIZES[0]) for label in column_labels]
    left = MARGIN + max((block.width + 2 * GAP for block in sides if block.height), default=0)
    total = max(left + columns * (width + GAP) - GAP + MARGIN, 2 * MARGIN + SIDE)
    head = fitted(title, total - 2 * MARGIN, 4 * TITLE_SIZE, (TITLE_SIZE, *SIZES))
    top = MARGIN + (head.height + 2 * GAP if head.height else 0)
    first = top + max((block.height + GAP for block in tops if block.height), default=0)
    sheet = Image.new("RGB", (total, first + len(cells) * (height + GAP) - GAP + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    _write(pen, head, MARGIN, MARGIN)
    for i, block in enumerate(tops):
        x = left + i * (width + GAP)
        _write(pen, block, x, first - GAP - block.height, width)
    for i, row in enumerate(cells):
        y = first + i * (height + GAP)
        if i < len(sides):
            _write(pen, sides[i], MARGIN, y + (height - sides[i].height) // 2)
        for j, cell in enumerate(row):
            _place(sheet, cell, (left + j * (width + GAP), y, width, height))
    return sheet


def enlarged(picture: Image.Image) -> Image.Image:
    """Small pictures by a whole number, so that every pixel stays a sharp square; large ones shrunk smoothly."""
    longer = max(picture.size)
    if longer <= SIDE:
        times = max(1, round(SIDE / longer))
        return picture.convert("RGB").resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    shrink = SIDE / longer
    size = (max(1, round(picture.width * shrink)), max(1, round(picture.height * shrink)))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def labelled(picture: Image.Image, text: str) -> Image.Image:
    """`picture` with two lines' room for a text beneath it."""
    result = Image.new("RGB", (picture.width, picture.height + 2 * _leading(SIZES[2]) + GAP), PAPER)
    result.paste(picture)
    block = fitted(text, picture.width, 2 * _leading(SIZES[2]), SIZES[2:])
    _write(ImageDraw.Draw(result), block, 0, picture.height + GAP // 2, picture.width)
    return result


def fitted(text: str, width: int, height: int, sizes: Sequence[int] = SIZES) -> Block:
    """`text` in lines that fit width × height, in the largest letters that do; cut with "…" where none do."""
    for size in sizes:
        block = Block(tuple(_wrapped(text, width, size)), size)
        if block.width <= width and block.height <= height:
            return block
    lines = [_cut(line, width, size) for line in block.lines]
    room = max(1, height // _leading(size))
    if len(lines) > room:
        lines = [*lines[: room - 1], _cut(lines[room - 1] + " …", width, size)]
    return Block(tuple(lines), size)


def _wrapped(text: str, width: int, size: int) -> list[str]:
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in _words(paragraph, width, size):
            longer = f"{line} {word}".strip()
            if line and _width(longer, size) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def _words(text: str, width: int, size: int) -> Iterator[str]:
    """The words of `text`; one that is wider than a line is broken anywhere."""
    for word in text.split():
        piece = ""
        for letter in word:
            if piece and _width(piece + letter, size) > width:
                yield piece
                piece = ""
            piece += letter
        yield piece


def _cut(line: str, width: int, size: int) -> str:
    if _width(line, size) <= width:
        return line
    while line and _width(line + "…", size) > width:
        line = line[:-1].rstrip(" …")
    return line + "…"


def _width(line: str, size: int) -> int:
    return math.ceil(font(size).getlength(line))


def _leading(size: int) -> int:
    return round(size * 1.25)


def _write(pen: ImageDraw.ImageDraw, block: Block, x: int, y: int, width: int | None = None) -> None:
    """`block` with its upper left corner at (x, y); centred, where a width is given."""
    for i, line in enumerate(block.lines):
        shift = (width - _width(line, block.size)) // 2 if width else 0
        pen.text((x + shift, y + i * _leading(block.size)), line, fill=INK, font=font(block.size))


def _place(sheet: Image.Image, cell: Picture, box: tuple[int, int, int, int]) -> None:
    """`cell` in the middle of box (x, y, width, height); a grey ground where there is none."""
    x, y, width, height = box
    if cell is None:
        sheet.paste(EMPTY, (x, y, x + width, y + height))
    else:
        sheet.paste(cell, (x + (width - cell.width) // 2, y + (height - cell.height) // 2))
