"""What the demo draws: one prompt per row and column, each with the trigger words of the adapters that are active there."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A scene: `frame` holds the base's own `thing`, or the character in its place."""

    thing: str
    style: str  # one of the base's styles, where no style adapter is active
    frame: str = "a {}"

    @property
    def label(self) -> str:
        return f"{self.frame.format(self.thing)},\n{self.style}"


ROWS = (  # none of the things is in the style folder, so what is seen in its style has carried over
    Row("cat face", "flat emoji"),
    Row("rocket", "3d emoji"),
    Row("hamburger", "noto emoji"),
    Row("guitar", "flat emoji"),
    Row("house", "3d emoji"),
    Row("key", "noto emoji"),
    Row("penguin", "flat emoji", "a {} with a crown"),
)


@dataclass(frozen=True)
class Triggers:
    """The words that call the two adapters; the style's stands where else a style of the base does."""

    style: str
    character: str


@dataclass(frozen=True)
class Column:
    name: str
    style: float = 0.0  # η of the style adapter
    character: float = 0.0  # η of the character adapter

    def prompt(self, row: Row, triggers: Triggers) -> str:
        thing = triggers.character if self.character else row.thing
        return f"{row.frame.format(thing)}, {triggers.style if self.style else row.style}"

    def label(self, triggers: Triggers) -> str:
        """The name, the strengths, and how the row's words become the prompt."""
        strengths = [f"{what} {eta:g}" for what, eta in (("style", self.style), ("character", self.character)) if eta]
        words = ["a " + triggers.character if self.character else "…", triggers.style if self.style else "…"]
        prompt = ", ".join(words) if strengths else "as at the left"
        return f"{self.name}\n{', '.join(strengths) or 'no adapter'}\n“{prompt}”"


COLUMNS = (
    Column("the base"),
    Column("half the style", style=0.5),
    Column("the style", style=1.0),
    Column("the character", character=1.0),
    Column("both together", style=0.7, character=1.0),  # at style 1 the robot's eyes are drawn over
)


def prompts(column: Column, triggers: Triggers, rows: Iterable[Row] = ROWS) -> list[str]:
    return [column.prompt(row, triggers) for row in rows]
