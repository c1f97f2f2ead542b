"""Composition: `a cat AND a dog :0.7` is two conditions with weights.  Liu et al. 2022, arXiv:2206.01714, eq. 11."""

import re
from typing import NamedTuple

AND = re.compile(r"\bAND\b")
WEIGHT = re.compile(r":\s*([-+]?(?:\d+\.?|\d*\.\d+))\Z")


class Part(NamedTuple):
    """One condition: D = u + s Σ wᵢ (cᵢ − u)."""

    text: str
    weight: float


def parts(prompt: str) -> list[Part]:
    """The conditions of `prompt`, at least one: split at the word AND; a `:number` at a part's end is its weight. Never an error."""
    return [_part(text) for text in AND.split(prompt)]


def _part(text: str) -> Part:
    text = text.rstrip()
    match = WEIGHT.search(text)
    return Part(text[: match.start()].rstrip(), float(match[1])) if match else Part(text, 1.0)
