"""Emphasis: `(word)` × 1.1, `[word]` ÷ 1.1, `(word:1.3)` × 1.3, escapes by a backslash, and BREAK.

The rules are AUTOMATIC1111's (modules/prompt_parser.py, parse_prompt_attention), oddities included, so that a prompt means the same:
a bracket that is never closed reaches to the end, and a BREAK inside brackets is a word like any other.
"""

import re
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
    pieces: list[tuple[str, float]] = []
    open_round: list[int] = []  # where in `pieces` each bracket that is still open began
    open_square: list[int] = []
    for match in TOKEN.finditer(prompt):
        word, weight = match[0], _number(match[1])
        if word[0] == "\\":
            pieces.append((word[1:], 1.0))
        elif word == "(":
            open_round.append(len(pieces))
        elif word == "[":
            open_square.append(len(pieces))
        elif weight is not None and open_round:
            _multiply(pieces, open_round.pop(), weight)
        elif word == ")" and open_round:
            _multiply(pieces, open_round.pop(), ROUND)
        elif word == "]" and open_square:
            _multiply(pieces, open_square.pop(), SQUARE)
        elif match[1] and weight is None and open_round:  # (word:1.2.3) is no number: text, then a bracket that closes
            pieces.append((word[:-1], 1.0))
            _multiply(pieces, open_round.pop(), ROUND)
        else:
            pieces += _broken(word)
    for start in open_round:
        _multiply(pieces, start, ROUND)
    for start in open_square:
        _multiply(pieces, start, SQUARE)
    return _joined(pieces)


def escaped(text: str) -> str:
    r"""`text` with a backslash before each bracket and backslash: `spans` gives it back unweighted, but for BREAK."""
    return re.sub(r"[()\[\]\\]", r"\\\g<0>", text)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _broken(text: str) -> list[tuple[str, float]]:
    first, *others = BREAK.split(text)
    return [(first, 1.0), *(piece for other in others for piece in (END_OF_CHUNK, (other, 1.0)))]


def _multiply(pieces: list[tuple[str, float]], start: int, factor: float) -> None:
    pieces[start:] = [(text, weight * factor) for text, weight in pieces[start:]]


def _joined(pieces: list[tuple[str, float]]) -> list[Span]:
    groups: list[tuple[list[str], float]] = []
    for text, weight in pieces:
        if groups and groups[-1][1] == weight:
            groups[-1][0].append(text)
        else:
            groups.append(([text], weight))
    return [Span("".join(texts), weight) for texts, weight in groups] or [Span("", 1.0)]
