"""Tokens in chunks of 75, each between a start and an end token, so that a prompt may have any length.

The rules are AUTOMATIC1111's (modules/sd_hijack_clip.py, tokenize_line): a chunk that overflows with a comma among its last 20 tokens
hands what follows the comma to the next chunk, and a BREAK ends a chunk. The end token fills what is left.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BACKTRACK = 20  # tokens to look back for a comma; AUTOMATIC1111's comma_padding_backtrack


@dataclass(frozen=True)
class Chunk:
    """One row for the text encoder: `length` + 2 tokens and the weight of each."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Marks:
    """The tokens that chunking has to know."""

    start: int
    end: int
    comma: int | None = None
    length: int = 75


Weighted = tuple[Sequence[int], float]  # the tokens of a span and its weight


def chunked(spans: Iterable[Weighted | None], marks: Marks, backtrack: int = BACKTRACK) -> list[Chunk]:
    """At least one chunk. None among `spans` is a BREAK."""
    done: list[Chunk] = []
    tokens: list[tuple[int, float]] = []
    comma = -1  # where in `tokens` the last one stands

    for span in spans:
        if span is None:
            done.append(_closed(tokens, marks))
            tokens, comma = [], -1
            continue
        for token in span[0]:
            full = len(tokens) == marks.length
            if token == marks.comma:
                comma = len(tokens)
            elif full and 0 <= comma and len(tokens) - comma <= backtrack:
                done.append(_closed(tokens[: comma + 1], marks))
                tokens, comma = tokens[comma + 1 :], -1
            if len(tokens) == marks.length:
                done.append(_closed(tokens, marks))
                tokens, comma = [], -1
            tokens.append((token, span[1]))
    return [*done, _closed(tokens, marks)] if tokens or not done else done


def empty(marks: Marks) -> Chunk:
    """What pads a prompt to the number of chunks of a longer one."""
    return _closed([], marks)


def _closed(tokens: Sequence[tuple[int, float]], marks: Marks) -> Chunk:
    rest = marks.length + 1 - len(tokens)
    ids = (marks.start, *(token for token, _ in tokens), *[marks.end] * rest)
    return Chunk(ids, (1.0, *(weight for _, weight in tokens), *[1.0] * rest))
