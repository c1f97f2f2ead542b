"""Captions: read beside an image, and worded anew for the times it is seen: chosen, shuffled, with tags left out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from sdlora import texts
from sdlora.errors import SdloraError

SUFFIXES = (".txt", ".caption")
COMMA = ", "


@dataclass(frozen=True)
class Wording:
    """How an image's captions become the texts that it is trained with."""

    shuffle: bool = False
    dropout: float = 0.0  # share of the loose tags that are left out
    keep: int = 0  # tags at the front that stay where they are
    separator: str = ""  # what stands before the first one stays as well, and what stands behind the second
    variants: int = 1

    @property
    def by_chance(self) -> bool:
        return self.shuffle or self.dropout > 0

    def count(self, captions: int) -> int:
        """How many texts are made of an image's captions: each of them equally often."""
        return captions * max(1, self.variants // captions) if self.by_chance else captions


def beside(image: Path) -> list[Path]:
    """The caption files of `image`: those that are there."""
    both = ((image.with_suffix(suffix), image.with_suffix(suffix.upper())) for suffix in SUFFIXES)  # some programs write .TXT
    return [found[0] for names in both if (found := [path for path in names if path.is_file()])]


def read(image: Path, lines: bool = False) -> tuple[str, ...]:
    """What the caption file beside `image` says, on one line, or with `lines` each line for itself; () where there is no such file.

    SdloraError for a file that is empty or no UTF-8 text.
    """
    found = beside(image)
    if not found:
        return ()
    path = found[0]
    text = texts.read(path, f"what {image.name} shows, in words")
    captions = tuple(filter(None, (plain(line) for line in (text.splitlines() if lines else [text]))))
    if not captions:
        raise SdloraError(f"{path} is empty; write what {image.name} shows into it")
    return captions


def plain(text: str) -> str:
    """On one line."""
    return " ".join(text.split())


def tags(caption: str) -> list[str]:
    """What stands between commas."""
    return [tag for tag in (part.strip() for part in caption.split(",")) if tag]


def with_trigger(caption: str, triggers: Sequence[str]) -> str:
    """`caption`, with the first trigger in front of it if it has none of them."""
    if not triggers or any(contains(caption, trigger) for trigger in triggers):
        return caption
    return f"{triggers[0]}{COMMA}{caption}" if caption else triggers[0]


def wordings(captions: Sequence[str], how: Wording, chance: Callable[[int], Random]) -> tuple[str, ...]:
    """The texts that take turns for an image. `chance(i)` makes the generator of text i; the captions' own order is chance(−1)'s."""
    order = _shuffled(captions, chance(-1)) if len(captions) > 1 else list(captions)
    return tuple(worded(order[i % len(order)], how, chance(i)) for i in range(how.count(len(order))))


def worded(caption: str, how: Wording, chance: Random) -> str:
    """`caption` with its loose tags dropped and shuffled. Where nothing is asked for it is returned letter by letter."""
    marked = bool(how.separator) and how.separator in caption
    if not marked and not how.by_chance:
        return caption
    first, loose, last = _parts(caption, how) if marked else (tags(caption)[: how.keep], tags(caption)[how.keep :], [])
    if how.dropout:
        loose = [tag for tag in loose if chance.random() >= how.dropout]
    if how.shuffle:
        loose = _shuffled(loose, chance)
    return COMMA.join([*first, *loose, *last])


def _parts(caption: str, how: Wording) -> tuple[list[str], list[str], list[str]]:
    first, _, rest = caption.partition(how.separator)
    loose, _, last = rest.partition(how.separator)
    return tags(first), tags(loose), tags(last.replace(how.separator, COMMA))


def _shuffled(items: Sequence[str], chance: Random) -> list[str]:
    """Sorted by random numbers: Python promises the same random() for a seed in every version, and not the same shuffle()."""
    return [item for _, item in sorted(((chance.random(), item) for item in items), key=lambda pair: pair[0])]


def contains(caption: str, words: str) -> bool:
    """Whether `words` occur in `caption` one after the other, whatever their case and the punctuation around them."""
    return f" {_plain(words)} " in f" {_plain(caption)} "


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() or c in "-_'" else " " for c in text.lower()).split())
