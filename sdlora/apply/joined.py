"""The updates of one layer as one, on the fly: A x, computed once for all layers that see the same tensor, the strengths, and B.

A forward hook adds them to the layer's output, as long as there is anything to add. Where the ranks of a layer sum up to so much
that ΔW itself is the cheaper product (Σr (in + out) > in out), it multiplies by ΔW, made when the strengths have changed and not
before it is needed; and inside a block of apply/fold.py it lets the layer multiply by W + ΔW, once that has become the cheaper way.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from sdlora.apply.fold import FOLDING, Folding, unfold
from sdlora.apply.rows import Gathered, Rows, by_setting, expanded
from sdlora.errors import SdloraError
from sdlora.layers import finite, pair
from sdlora.matching import weight_of


class First:
    """A and the strengths of one layer's updates, or of several layers' that are called one after the other with one tensor.

    That tensor must not be changed between these calls. One thread at a time.
    """

    def __init__(self, layers: Sequence[nn.Module], parts: Sequence[Sequence[tuple[int, Any]]]):
        """`parts`: for each layer the numbers of the adapters, and their updates of it."""
        weight = weight_of(layers[0])
        self.a = _cat([update.a for own in parts for _, update in own], 0).to(weight.device, weight.dtype)
        self.updates = [(owner, update.scale, update.rank) for own in parts for owner, update in own]
        self.owners = self.scales = torch.empty(0)  # (Σr,) each: whose a column of the bottleneck is, and its α / r: parts of the Stack's
        self.members = [{owner for owner, _ in own} for own in parts]  # the adapters of each layer
        ends = list(accumulate((sum(update.rank for _, update in own) for own in parts), initial=0))
        self.spans = [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]  # which columns are which layer's
        self.strengths = torch.empty(0)  # (rows or 1, Σr) fp32: η α / r, a part of the Stack's vectors
        self.rows: Rows | None = None  # where they are not all rows' own
        self.gathered: Gathered | None = None  # what `rows` mean here, made at the first call
        self.b = [_cat([update.b for _, update in own], 1).to(weight.device, weight.dtype) for own in parts]  # (out, Σr, …) each
        self.seen: tuple[Tensor, Any] | None = None  # the last input and its first product
        self.asked: set[int] = set()  # the layers whose hooks are on

    def wild(self) -> set[int]:
        """The adapters with a number that is none here (∞, or too large for the layers' dtype)."""
        if finite(self.a, *self.b):
            return set()
        columns = torch.isfinite(self.a).flatten(1).all(1)
        for span, b in zip(self.spans, self.b, strict=True):
            columns[span] &= torch.isfinite(b).transpose(0, 1).flatten(1).all(1)
        return set(self.owners[~columns.cpu()].tolist())

    def change(self, rows: Rows | None) -> None:
        self.rows, self.gathered, self.seen = rows, None, None

    def come_to(self, device: torch.device) -> None:
        """The layers may have moved since they were stacked upon."""
        if self.a.device != device:
            self.a, self.b = self.a.to(device), [b.to(device) for b in self.b]
            self.gathered = self.seen = None

    def product(self, x: Tensor, member: int) -> Tensor:
        """s · A x for the layer `member`, (…, in) -> (…, r)."""
        h = self._once(x, member)
        return h if len(self.spans) == 1 else h[..., self.spans[member]]

    def _once(self, x: Tensor, member: int) -> Any:
        """For all layers: what was computed for the one before, if this is its x; after the last layer that asks it is forgotten."""
        seen = self.seen
        if seen is None or seen[0] is not x:
            seen = x, self._products(x)
        self.seen = None if member >= max(self.asked, default=0) else seen
        return seen[1]

    def _products(self, x: Tensor) -> Any:
        return F.linear(x, self.a).mul_(self.strengths[0].to(x.device)) if self.rows is None else self.chosen().first(x)

    def add_rows(self, x: Tensor, output: Tensor, member: int) -> Tensor:
        """Under `rows`: x (rows, L, in), and `output` (rows, L, out) is summed into."""
        return self.chosen().second(self._once(x, member), output, member)

    def chosen(self) -> Gathered:
        if self.gathered is None:
            assert self.rows is not None
            self.gathered = self.rows.gathered(self)
        return self.gathered


class Joined:
    """What the forward hook of one layer adds."""

    def __init__(self, layer: nn.Module, first: First, member: int):
        """`layer` is `member` of the layers of `first`."""
        self.layer, self.first, self.member = layer, first, member
        self.owners = first.members[member]
        self.dense = is_cheaper_dense(layer, self.b.shape[1])
        self.delta: Tensor | None = None  # ΔW at the present strengths, where it is worth having
        self.active = False
        self.spent = 0  # what it has cost since the strengths changed; see Folding
        self.handle: RemovableHandle | None = None

    @property
    def a(self) -> Tensor:
        return self.first.a[self.first.spans[self.member]]

    @property
    def b(self) -> Tensor:
        return self.first.b[self.member]

    @property
    def strengths(self) -> Tensor:
        return self.first.strengths[:, self.first.spans[self.member]]

    @property
    def rowwise(self) -> bool:
        """Whether it does the same with every row, and takes any number of them."""
        return self.first.rows is None

    def change(self, active: bool) -> None:
        """The strengths are others; `active` if one of them is not 0: without that the layer is the base's, bit for bit."""
        unfold(self.layer, self)
        self.active, self.delta, self.spent = active, None, 0
        self.listen(active)

    def listen(self, wanted: bool) -> None:
        """Whether it is asked at the layer's calls: before all other hooks, to which the update is a part of the layer, folded or not."""
        if wanted and self.handle is None:
            self.handle = self.layer.register_forward_hook(self, prepend=True)
            self.first.asked.add(self.member)
        elif not wanted and self.handle is not None:
            self.handle.remove()
            self.handle = None
            self.first.asked.discard(self.member)

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """B with the strengths and A as matrices, (out, Σr) and (Σr, in …), in fp32 or wider: ΔW is their product."""
        s = self.strengths.to(device)
        return self.b.flatten(1) * s, self.a.flatten(1).to(torch.promote_types(self.a.dtype, s.dtype))

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        self.first.come_to(x.device)
        plain = not torch.is_grad_enabled() and not torch.compiler.is_compiling() and x.dtype == output.dtype == self.b.dtype
        plain = plain and (output.is_contiguous() or isinstance(layer, nn.Conv2d)) and not torch.is_autocast_enabled(x.device.type)
        if self.first.rows is not None:
            return self.by_rows(self.first.rows, layer, x, output, plain)
        if not plain:
            return self.with_pair(layer, x, output)
        result = self.on_the_fly(layer, x, output)
        found: Folding | None = vars(layer).get(FOLDING)
        if found is not None:
            found.called(self, result)
        return result

    def on_the_fly(self, layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """For all rows alike, into the layer's fresh output where that is possible."""
        if self.dense:
            return self.with_delta(layer, x, output)
        if isinstance(layer, nn.Linear):
            h = self.first.product(x, self.member)
            output.view(-1, output.shape[-1]).addmm_(h.view(-1, h.shape[-1]), self.b.t())
            return output
        return self.with_pair(layer, x, output)

    def with_pair(self, layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        s = expanded(self.strengths.to(x.device), layer, x)
        return output + pair(layer, x, self.a, self.b, s).to(output.dtype)

    def with_delta(self, layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        if self.delta is None or self.delta.device != x.device:
            b, a = self.factors(x.device)
            self.delta = (b @ a).view(weight_of(layer).shape).to(x.dtype)
        if isinstance(layer, nn.Conv2d):
            return output.add_(layer._conv_forward(x, self.delta, None))
        output.view(-1, output.shape[-1]).addmm_(x.view(-1, x.shape[-1]), self.delta.t())
        return output

    def by_rows(self, rows: Rows, layer: nn.Module, x: Tensor, output: Tensor, plain: bool) -> Tensor:
        count = len(self.first.strengths)
        if count > 1 and len(x) not in (1, count):
            raise SdloraError(f"the model is called with {len(x)} rows, and strengths are set for {count}; see Stack.set_rows")
        if not plain:  # nothing of `rows` is looked at: a compiled model would be compiled again for others
            return self.with_pair(layer, x, output)
        if x.dim() == 3 and len(x) == count and isinstance(layer, nn.Linear):
            return self.first.add_rows(x, output, self.member)
        return by_setting(rows, self.first, self.member, layer, x, output)


def _cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """A single one is itself: what is read from a file is not copied again, which takes a third of the time of putting it on."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def is_cheaper_dense(layer: nn.Module, rank: int) -> bool:
    """Whether one product with ΔW takes fewer multiplications than two with B and A."""
    out, *rest = weight_of(layer).shape
    kernel = 1
    for n in rest:
        kernel *= n
    return rank * (kernel + out) > kernel * out
