"""What the U-Net is told at each step: every prompt of a batch as weighted conditions that change with the steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdlora.generation.request import Request
from sdlora.models import Components
from sdlora.prompts import Encoded, Entry, Memory, current, encode, schedule


@dataclass(frozen=True, eq=False)
class Conditions:
    """Of a batch of n pictures at one step: m ≥ n rows, the conditions of the first picture first."""

    rows: list[Encoded]  # m, of one text each
    owners: list[int]  # m: which picture a row is for
    weights: list[float]  # m: w of u + s Σ w (c − u)
    unconditional: list[Encoded]  # n; none without guidance

    @cached_property
    def calls(self) -> list[tuple[list[int], Tensor]]:
        """The rows, the unconditional ones last, by the length of their text: their numbers and their context, a call of the U-Net each.

        None is padded for another's sake. The same tensors at every step, so that what depends on nothing else is computed once.
        """
        contexts = self.contexts
        lengths = [context.shape[1] for context in contexts]
        groups = [[row for row, tokens in enumerate(lengths) if tokens == length] for length in dict.fromkeys(lengths)]
        return [(rows, torch.cat([contexts[row] for row in rows])) for rows in groups]

    @property
    def contexts(self) -> list[Tensor]:
        return [row.context for row in (*self.rows, *self.unconditional)]

    def same(self, other: "Conditions") -> bool:
        """Whether both hold the very same rows for the same pictures with the same weights."""
        if (self.owners, self.weights, len(self.contexts)) != (other.owners, other.weights, len(other.contexts)):
            return False
        return all(a is b for a, b in zip(self.contexts, other.contexts, strict=True))


@dataclass(frozen=True, eq=False)
class Timed:
    """One text, edited along the steps."""

    entries: list[Entry]
    rows: list[Encoded]  # one per entry

    def at(self, step: int) -> Encoded:
        return self.rows[current(self.entries, step)]


@dataclass
class Texts:
    """The texts that are encoded already, by what the text encoder was at the time; each is encoded once."""

    components: Components
    memories: dict[Any, Memory] = field(default_factory=dict)
    known: dict[Any, Timed] = field(default_factory=dict)

    def timed(self, text: str, request: Request, state: object) -> Timed:
        """`state` stands for the strengths of all that is on the text encoder."""
        key = (state, text, request.steps, request.clip_skip, request.emphasis)
        if key not in self.known:
            entries = schedule(text, request.steps)
            memory = self.memories.setdefault(state, Memory())
            tokenizer, text_encoder = self.components.tokenizer, self.components.text_encoder
            texts = [entry.text for entry in entries]
            encoded = encode(tokenizer, text_encoder, texts, request.clip_skip, request.emphasis, memory=memory)
            self.known[key] = Timed(entries, [encoded.row(i) for i in range(len(entries))])
        return self.known[key]


def conditions(requests: Sequence[Request], texts: Texts, state: object, step: int) -> Conditions:
    """At `step`, counted from 0. All requests are guided, or none is."""
    rows: list[Encoded] = []
    owners: list[int] = []
    weights: list[float] = []
    for i, request in enumerate(requests):
        parts = request.parts
        rows += levelled([texts.timed(part.text, request, state).at(step) for part in parts])
        owners += [i] * len(parts)
        weights += [part.weight for part in parts]
    guided = [request for request in requests if request.guided]
    return Conditions(rows, owners, weights, [texts.timed(request.negative, request, state).at(step) for request in guided])


def levelled(rows: Sequence[Encoded]) -> list[Encoded]:
    """The conditions of one picture at one length: the last vector of a shorter one is repeated, as AUTOMATIC1111 does."""
    longest = max(row.context.shape[1] for row in rows)
    return [Encoded(_stretched(row.context, longest), row.pooled) for row in rows]


def composed(conditional: Tensor, unconditional: Tensor, owners: Sequence[int], weights: Sequence[float], guidance: Tensor) -> Tensor:
    """u + s Σ wᵢ (cᵢ − u), (n, …), from m conditional and n unconditional predictions.

    Ho & Salimans 2022, arXiv:2207.12598, and Liu et al. 2022, arXiv:2206.01714, eq. 11.  guidance: s, (n, 1, 1, 1) fp32.
    """
    total = unconditional.clone()
    ordinals = [owners[:row].count(owner) for row, owner in enumerate(owners)]  # the how-manieth condition of its picture a row is
    for ordinal in range(max(ordinals) + 1):
        rows = [row for row, number in enumerate(ordinals) if number == ordinal]
        of = [owners[row] for row in rows]
        scales = guidance[of] * torch.tensor([weights[row] for row in rows], device=guidance.device).view(-1, 1, 1, 1)
        total[of] = total[of] + scales * (conditional[rows] - unconditional[of])
    return total


def _stretched(context: Tensor, length: int) -> Tensor:
    missing = length - context.shape[1]
    return torch.cat([context, context[:, -1:].expand(-1, missing, -1)], dim=1) if missing else context
