"""Emphasis: `(word)` × 1.1, `[word]` ÷ 1.1, `(word:1.3)` × 1.3, escapes by a backslash, and BREAK.

The rules are AUTOMATIC1111's (modules/prompt_parser.py, parse_prompt_attention), oddities included, so that a prompt means the same:
a bracket that is never closed reaches to the end, and a BREAK inside brackets is a word like any other.
"""

import re
from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

EMPHASES = ("Original", "No norm", "Ignore", "None")  # what becomes of the weights; sdlora/prompts/encode.py
ROUND, SQUARE = 1.1, 1 / 1.1
TOKEN = re.compile(r"\\[()\[\]\\]|\\|[(\[]|:\s*([+-]?[.\d]+)\s*\)|[)\]]|[^\\()\[\]:]+|:")
BREAK = re.compile(r"\s*\bBREAK\b\s*")


class Span(NamedTuple):
    """A piece of text and the weight of its tokens."""

    text: str
    weight: float


END_OF_CHUNK = Span("BREAK", -1.0)


def spans(prompt: str) -> list[Span]:
    """The pieces of `prompt` in order, neighbours of one weight joined; END_OF_CHUNK stands for a BREAK. Never empty, never an error."""
    texts: list[str] = []
    weights: list[float] = []
    open_round: list[int] = []  # the number of the first piece in each bracket that is still open
    open_square: list[int] = []

    def add(text: str, weight: float = 1.0) -> None:
        texts.append(text)
        weights.append(weight)

    def multiply(start: int, factor: float) -> None:
        for i in range(start, len(weights)):
            weights[i] *= factor

    for match in TOKEN.finditer(prompt):
        word, weight = match[0], _number(match[1])
        if word[0] == "\\":
            add(word[1:])
        elif word == "(":
            open_round.append(len(texts))
        elif word == "[":
            open_square.append(len(texts))
        elif weight is not None and open_round:
            multiply(open_round.pop(), weight)
        elif word == ")" and open_round:
            multiply(open_round.pop(), ROUND)
        elif word == "]" and open_square:
            multiply(open_square.pop(), SQUARE)
        elif match[1] and weight is None and open_round:  # (word:1.2.3) is no number: text, then a bracket that closes
            add(word[:-1])
            multiply(open_round.pop(), ROUND)
        else:
            first, *others = BREAK.split(word)
            add(first)
            for other in others:
                add(*END_OF_CHUNK)
                add(other)
    for start in open_round:
        multiply(start, ROUND)
    for start in open_square:
        multiply(start, SQUARE)
    return _joined(zip(texts, weights, strict=True)) or [Span("", 1.0)]


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _joined(pieces: Iterable[tuple[str, float]]) -> list[Span]:
    groups = groupby(pieces, key=lambda piece: piece[1])
    return [Span("".join(text for text, _ in group), weight) for weight, group in groups]
