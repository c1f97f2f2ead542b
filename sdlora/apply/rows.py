"""Every row of a batch with strengths of its own: a (rows, Σr) matrix, or of A and B each row's own columns.

Where all rows use all adapters, the bottleneck of rank Σr is multiplied by a matrix in place of the vector. Where they do
not, a row would pay for its neighbours' adapters: its own columns of A and B are gathered once, and a batched product takes
as long as one adapter does. Columns that fill up the rows of fewer are zero, so that nothing of a neighbour's comes in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdlora.layers import pair

if TYPE_CHECKING:
    from sdlora.apply.joined import First


@dataclass(eq=False)
class Selection:
    """Which adapters each row uses, and what was gathered for it, by layer."""

    pattern: tuple[tuple[bool, ...], ...]  # (rows, k)
    made: dict[First, Columns] = field(default_factory=dict)

    @property
    def period(self) -> int:
        """After how many rows it repeats itself: guidance has each picture twice."""
        rows = len(self.pattern)
        return next(p for p in range(1, rows + 1) if rows % p == 0 and self.pattern == self.pattern[:p] * (rows // p))

    def columns(self, first: First) -> Columns:
        found = self.made.get(first)
        if found is None or found.device != first.a.device:
            found = self.made[first] = Columns.of(first, torch.tensor(self.pattern[: self.period]))
        return found


@dataclass(frozen=True, eq=False)
class Columns:
    """For each of p rows, and each layer of a First, R of its columns: those that the row uses, filled up with zeros."""

    index: Tensor  # (p, Σ R) into the columns of all layers
    spans: list[slice]  # which of the Σ R are which layer's
    a: Tensor | None  # (p, in, Σ R); None: every row uses every column, and A and B stay as they are
    b: list[Tensor]  # of each layer, (p, R, out)

    @property
    def device(self) -> torch.device:
        return self.index.device

    @staticmethod
    def of(first: First, pattern: Tensor) -> Columns:
        used = pattern[:, first.owners]
        if bool(used.all()):
            return Columns(torch.arange(used.shape[1], device=first.a.device).expand(used.shape), first.spans, None, [])
        indices, start = [], 0
        spans = []
        for span in first.spans:
            own = used[:, span]
            most = int(own.sum(1).max())
            indices.append(own.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most] + span.start)
            spans.append(slice(start, start + most))
            start += most
        index = torch.cat(indices, dim=1)
        real = used.gather(1, index).to(first.a.device)[..., None]
        index = index.to(first.a.device)
        if first.a.dim() != 2:  # a convolution's go setting by setting
            return Columns(index, spans, None, [])
        a = torch.where(real, first.a[index], 0)
        seconds = zip(first.b, first.spans, spans, strict=True)
        b = [torch.where(real[:, part], own.t()[index[:, part] - span.start], 0) for own, span, part in seconds]
        return Columns(index, spans, a.transpose(1, 2).contiguous(), b)


@dataclass(frozen=True, eq=False)
class Rows:
    """η of each row for each adapter, and which columns that means."""

    etas: tuple[tuple[float, ...], ...]  # (rows, k); a single one is every row's
    selection: Selection

    def gathered(self, first: First) -> Gathered:
        columns = self.selection.columns(first)
        every = first.strengths.to(first.a.device)
        times = len(every) // len(columns.index)
        return Gathered(first, columns, every.gather(1, columns.index.repeat(times, 1))[:, None], len(columns.index))


@dataclass(frozen=True, eq=False)
class Gathered:
    """The two products of the rows, each with its own columns; for x (rows, L, in)."""

    layers: First
    columns: Columns
    strengths: Tensor  # (rows, 1, Σ R) fp32
    period: int

    def first(self, x: Tensor) -> list[Tensor]:
        """s · A x of p rows at a time, (p, L, Σ R) each, so that the gathered columns serve all of them."""
        if self.columns.a is None:
            return [F.linear(x, self.layers.a).mul_(self.strengths)]
        parts = zip(x.split(self.period), self.strengths.split(self.period), strict=True)
        return [torch.bmm(rows, self.columns.a).mul_(s) for rows, s in parts]

    def second(self, h: list[Tensor], output: Tensor, member: int) -> Tensor:
        """`output` (rows, L, out) with B (s · A x) of the layer `member` summed into it."""
        alone = len(self.columns.spans) == 1
        h = h if alone else [one[..., self.columns.spans[member]] for one in h]
        if self.columns.a is None:
            (one,) = h
            output.view(-1, output.shape[-1]).addmm_(one.view(-1, one.shape[-1]), self.layers.b[member].t())
            return output
        for rows, one in zip(output.split(self.period), h, strict=True):
            rows.baddbmm_(one, self.columns.b[member])
        return output


def by_setting(rows: Rows, first: First, member: int, layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
    """For convolutions and vectors: rows with the same strengths together, as they would be alone. One row of x serves all."""
    span = first.spans[member]
    one = len(x) < len(rows.etas)
    result = output.expand(len(rows.etas), *output.shape[1:]).clone() if one else output
    for etas in dict.fromkeys(rows.etas):
        of = slice(None) if len(rows.etas) == 1 else [i for i, row in enumerate(rows.etas) if row == etas]
        own = first.strengths[rows.etas.index(etas), span]
        used = own.nonzero().flatten().to(x.device)
        if len(used):
            a, b, s = first.a[span][used], first.b[member][:, used], own.to(x.device)[None, used]
            inputs = x if one else x[of]
            result[of] += pair(layer, inputs, a, b, expanded(s, layer, inputs))
    return result


def expanded(s: Tensor, layer: nn.Module, x: Tensor) -> Tensor:
    """Strengths (rows or 1, Σr) in the shape that multiplies the bottleneck of `layer` for x, with a batch or without."""
    s = s[0] if len(s) == 1 else s
    if isinstance(layer, nn.Conv2d):
        return s.view(*s.shape, 1, 1)  # (n, Σr, h, w) has its channels second
    return s.view(len(s), *(1,) * (x.dim() - 2), -1) if s.dim() == 2 else s
