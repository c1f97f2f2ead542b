"""Sample pictures of a run: one file per step and prompt, and a grid of all that grows with the training.

Each file says in itself what it is a sample of. So after a change of prompts, or of how samples are drawn, older ones stay on the
disk and are neither taken for the new ones nor shown beside them.
"""

from collections.abc import Sequence

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora import atomic, sheet
from sdlora.training.layout import Layout

KEY = "sdlora.sample"


def complete(place: Layout, step: int, marks: Sequence[str]) -> bool:
    """Whether every picture of the step is there; a mark says what one is a sample of."""
    return all(_mark(place, step, number) == mark for number, mark in enumerate(marks, 1))


def save(place: Layout, step: int, pictures: Sequence[Image.Image], marks: Sequence[str]) -> None:
    for number, (picture, mark) in enumerate(zip(pictures, marks, strict=True), 1):
        info = PngInfo()
        info.add_itxt(KEY, mark)
        with atomic.replacing(place.sample(step, number)) as temporary:
            picture.save(temporary, pnginfo=info)


def steps(place: Layout, marks: Sequence[str]) -> list[int]:
    """Those whose pictures are all there, in order; 0 is the base."""
    found = {int(path.stem.split("-")[1]) for path in place.grid.parent.glob("step-*-1.png")}
    return [step for step in sorted(found) if complete(place, step, marks)]


def grid(place: Layout, prompts: Sequence[str], marks: Sequence[str]) -> None:
    """Rewrite the grid: a row per step, a column per prompt."""
    shown = steps(place, marks)
    rows = [[_opened(place, step, number) for number in range(1, len(prompts) + 1)] for step in shown]
    sheet.contact_sheet(rows, [f"step {step}" if step else "base" for step in shown], prompts, place.grid)


def _mark(place: Layout, step: int, number: int) -> str | None:
    try:
        with Image.open(place.sample(step, number)) as image:
            return image.info.get(KEY)
    except OSError:
        return None


def _opened(place: Layout, step: int, number: int) -> Image.Image:
    with Image.open(place.sample(step, number)) as image:
        return image.convert("RGB")
