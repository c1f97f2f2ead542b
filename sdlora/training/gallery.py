"""Sample pictures of a run: one file per step and prompt, and a grid of all that grows with the training."""

from collections.abc import Sequence

from PIL import Image

from sdlora import atomic, sheet
from sdlora.training.layout import Layout


def complete(place: Layout, step: int, prompts: int) -> bool:
    """Whether every picture of the step is there."""
    return all(place.sample(step, number).exists() for number in range(1, prompts + 1))


def save(place: Layout, step: int, pictures: Sequence[Image.Image]) -> None:
    for number, picture in enumerate(pictures, 1):
        with atomic.replacing(place.sample(step, number)) as temporary:
            picture.save(temporary)


def steps(place: Layout, prompts: int) -> list[int]:
    """Those whose pictures are all there, in order; 0 is the base."""
    found = {int(path.stem.split("-")[1]) for path in place.grid.parent.glob("step-*-1.png")}
    return [step for step in sorted(found) if complete(place, step, prompts)]


def grid(place: Layout, prompts: Sequence[str]) -> None:
    """Rewrite the grid: a row per step, a column per prompt."""
    shown = steps(place, len(prompts))
    rows = [[_opened(place, step, number) for number in range(1, len(prompts) + 1)] for step in shown]
    sheet.contact_sheet(rows, [f"step {step}" if step else "base" for step in shown], prompts, place.grid)


def _opened(place: Layout, step: int, number: int) -> Image.Image:
    with Image.open(place.sample(step, number)) as image:
        return image.convert("RGB")
