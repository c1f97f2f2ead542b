"""Layers by pattern: globs over dotted names, the blocks of the U-Net by their short names, and sets of blocks known by a name."""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import translate
from functools import lru_cache
from typing import TypeVar

from sdlora.errors import SdloraError, nearest

Value = TypeVar("Value")

BLOCKS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}  # as in a strength's grammar
NAMED = {
    # Frenkel et al. 2024, arXiv:2403.14572, sec. 4: of SDXL's ten blocks of transformers, the two that hold content and style
    "b-lora-content": ("unet.up_blocks.0.attentions.0",),
    "b-lora-style": ("unet.up_blocks.0.attentions.1",),
    "b-lora": ("unet.up_blocks.0.attentions.0", "unet.up_blocks.0.attentions.1"),
}


def matches(pattern: str, name: str) -> bool:
    """Whether the layer `name` is the pattern's, or lies in a block or component that is.

    "unet.down.1" is all of unet.down_blocks.1; "unet.mid", "text_encoder" likewise; * stands for any characters, dots included
    ("*.attn2.*"), ? for one, [12] for one of these. A key of NAMED stands for its patterns.
    """
    return any(expression.match(name) for expression in _compiled(pattern))


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(f"(?:{translate(one)[:-2]})(?:\\..*)?\\Z") for one in map(_long, NAMED.get(pattern, (pattern,))))


def _long(pattern: str) -> str:
    component, *path = pattern.split(".")
    return ".".join([component, *(BLOCKS.get(word, word) if i == 0 else word for i, word in enumerate(path))])


def selected(names: Iterable[str], include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[str]:
    """Those of `names` that a pattern of `include` matches (no pattern: all) and none of `exclude`; in their order.

    SdloraError for a pattern that matches none.
    """
    names = list(names)
    for pattern in (*include, *exclude):
        check(pattern, names, "include" if pattern in include else "exclude")
    kept = [name for name in names if not include or any(matches(pattern, name) for pattern in include)]
    return [name for name in kept if not any(matches(pattern, name) for pattern in exclude)]


def assigned(names: Iterable[str], table: Mapping[str, Value], what: str) -> dict[str, Value]:
    """Layer name -> its value in {pattern: value}, the last pattern that matches; without the layers that none does."""
    names = list(names)
    result: dict[str, Value] = {}
    for pattern, value in table.items():
        check(pattern, names, what)
        result |= {name: value for name in names if matches(pattern, name)}
    return result


def check(pattern: str, names: Sequence[str], what: str) -> None:
    if any(matches(pattern, name) for name in names):
        return
    known = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, 6)} | NAMED.keys()
    hint = nearest(_long(pattern), known) if len(known) < 8 or _close(pattern, known) else f"; there are, for example, {_some(names)}"
    raise SdloraError(f"{what}: {pattern!r} matches no layer that is trained{hint}")


def _close(pattern: str, known: Iterable[str]) -> bool:
    return "did you mean" in nearest(_long(pattern), known)


def _some(names: Sequence[str]) -> str:
    return " and ".join(names[i] for i in sorted({0, len(names) - 1}))
