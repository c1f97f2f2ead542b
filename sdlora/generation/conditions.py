"""What the U-Net is told at each step: every prompt of a batch as weighted conditions that change with the steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdlora.conditioning import Conditioning, cat, encode_absent
from sdlora.errors import SdloraError
from sdlora.families import FAMILIES
from sdlora.generation.adapters import TextState
from sdlora.generation.request import Request
from sdlora.models import Components
from sdlora.prompts import Entry, Memory, current, encode, schedule
from sdlora.prompts.encode import check as check_encoder

Span = tuple[int, int]  # a pass's steps, and the steps of the pass before it or 0: what [a:b:when] counts in


@dataclass(frozen=True, eq=False)
class Conditions:
    """Of a batch of n pictures at one step: m ≥ n rows, the conditions of the first picture first."""

    rows: list[Conditioning]  # m, of one text each
    owners: list[int]  # m: which picture a row is for
    weights: list[float]  # m: w of u + s Σ w (c − u)
    unconditional: list[Conditioning]  # n; none without guidance
    face: Callable[[Sequence[int]], None]  # before each call of the U-Net: which picture each of its rows is for

    @cached_property
    def calls(self) -> list[tuple[list[int], Conditioning]]:
        """The rows, the unconditional ones last, by the length of their text: their numbers and their texts, a call of the U-Net each.

        None is padded for another's sake. The same tensors at every step, so that what depends on nothing else is computed once.
        """
        hints = [*self.rows, *self.unconditional]
        lengths = [hint.context.shape[1] for hint in hints]
        groups = [[row for row, tokens in enumerate(lengths) if tokens == length] for length in dict.fromkeys(lengths)]
        return [(rows, cat(hints[row] for row in rows)) for rows in groups]

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
    rows: list[Conditioning]  # one per entry

    def at(self, step: int) -> Conditioning:
        return self.rows[current(self.entries, step)]


@dataclass
class Texts:
    """The texts that are encoded already, by what the text encoders were at the time; each is encoded once."""

    components: Components
    device: torch.device  # where the U-Net will want them
    memories: dict[Any, Memory] = field(default_factory=dict)
    known: dict[Any, Timed] = field(default_factory=dict)

    def timed(self, text: str, request: Request, state: TextState, span: Span) -> Timed:
        """`state` is entered where there is something to encode."""
        key = (state.key, text, span, request.clip_skip, request.emphasis)
        if key not in self.known:
            state.enter()
            entries = schedule(text, *span)
            encoded = self._encoded([entry.text for entry in entries], request, state.key)
            self.known[key] = Timed(entries, [encoded[i : i + 1].to(self.device, self.components.dtype) for i in range(len(entries))])
        return self.known[key]

    def negative(self, request: Request, state: TextState, span: Span) -> Timed:
        """An empty one is the absence of a prompt: for SDXL zeros, as it was trained, and as diffusers takes None."""
        if request.negative or not self.components.zeros_for_empty:
            return self.timed(request.negative, request, state, span)
        if None not in self.known:
            absent = encode_absent(self.components).to(self.device, self.components.dtype)
            self.known[None] = Timed(schedule("", 1), [absent])
        return self.known[None]

    def _encoded(self, texts: Sequence[str], request: Request, state: object) -> Conditioning:
        """By each text encoder, side by side; the pooled vector is the last one's."""
        base = self.components
        skip, norm = (2, False) if FAMILIES[base.family].pooled else (request.clip_skip, True)
        parts = [
            encode(tokenizer, encoder, texts, skip, request.emphasis, norm, self.memories.setdefault((state, i), Memory()))
            for i, (tokenizer, encoder) in enumerate(zip(base.tokenizers, base.text_encoders, strict=True))
        ]
        pooled = parts[-1].pooled if FAMILIES[base.family].pooled else None
        return Conditioning(torch.cat([part.context for part in parts], dim=-1), pooled)


def check(components: Components, request: Request) -> None:
    """SdloraError for a clip skip that the text encoders cannot do, or that would have no effect."""
    if FAMILIES[components.family].pooled:
        if request.clip_skip > 2:
            raise SdloraError(f"clip skip is {request.clip_skip}; Stable Diffusion XL always reads the last layer but one, which is 2")
    else:
        check_encoder(request.emphasis, request.clip_skip, components.text_encoders[0])


def conditions(
    requests: Sequence[Request], texts: Texts, states: Sequence[TextState], step: int, span: Span, face: Callable[[Sequence[int]], None]
) -> Conditions:
    """At `step` of a pass, counted from 0, with the text encoders in one state per request. All requests are guided, or none is."""
    rows: list[Conditioning] = []
    owners: list[int] = []
    weights: list[float] = []
    for i, (request, state) in enumerate(zip(requests, states, strict=True)):
        parts = request.parts
        rows += levelled([texts.timed(part.text, request, state, span).at(step) for part in parts])
        owners += [i] * len(parts)
        weights += [part.weight for part in parts]
    guided = [(request, state) for request, state in zip(requests, states, strict=True) if request.guided]
    return Conditions(rows, owners, weights, [texts.negative(request, state, span).at(step) for request, state in guided], face)


def levelled(rows: Sequence[Conditioning]) -> list[Conditioning]:
    """The conditions of one picture at one length: the last vector of a shorter one is repeated, as AUTOMATIC1111 does."""
    longest = max(row.context.shape[1] for row in rows)
    return [Conditioning(_stretched(row.context, longest), row.pooled) for row in rows]


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
