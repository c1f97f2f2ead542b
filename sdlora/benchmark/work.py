"""The arithmetic of one step under each condition: floating-point operations, and the bytes that its operations read and write."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sdlora.benchmark.conditions import Draw, Subject, active
from sdlora.generation import Request

ATTENTION, PACKED = "scaled_dot_product", ("_convolution_pointwise", "_linear_pointwise")


@dataclass(frozen=True)
class Work:
    """Of one step of one batch: the second one, when everything that stays the same over the steps is known already."""

    condition: str
    flops: int  # of matrix products, convolutions and attention; a multiplication and an addition are two
    bytes: int  # read and written if every operation has its operands from memory: what caches save is not in it


class Counter(TorchDispatchMode):
    """Adds up what is computed inside. A product counts by the shapes of its operands, an operation in place like the one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        count = counted(func)
        if count is None:
            with self:
                result = func.decompose(*args, **named)
            if result is not NotImplemented:
                return result
        result = func(*args, **named)
        if not func.is_view:
            tensors = {id(t): t for t in tree_leaves((args, named, result)) if isinstance(t, Tensor)}
            self.bytes += sum(t.numel() * t.element_size() for t in tensors.values())
        if count is not None:
            self.flops += count(*args, **named, out_val=result)
        return result


def counted(func: Any) -> Callable[..., int] | None:
    """How the operations of `func` are counted; None if none of them is a product."""
    name = str(func.overloadpacket).rpartition(".")[2]
    if name.startswith(f"_{ATTENTION}") or name == f"{ATTENTION}_attention":
        return attention_backward if name.endswith("backward") else attention
    if name in PACKED:
        return packed
    plain = getattr(torch.ops.aten, name.rstrip("_"), func.overloadpacket)
    return flop_registry.get(plain)


def attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> int:
    """Q Kᵀ and the weights times V, for (…, n, d), (…, m, d) and (…, m, e)."""
    return 2 * math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def packed(x: Tensor, weight: Tensor, *rest: Any, out_val: Tensor, **named: Any) -> int:
    """Of a weight (out, in, …) in oneDNN's order, without groups: one product per number of the output, pixels' or rows'."""
    return 2 * out_val.numel() * math.prod(weight.shape[1:])


def attention_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> int:
    """The weights anew, and the gradients of V, of the weights, of Q and of K: five products where forwards there are two."""
    return attention(q, k, v) * 5 // 2


def measure(subject: Subject, names: Sequence[str], prompt: str, wanted: Sequence[Request]) -> tuple[Work, ...]:
    """Of every condition, for one batch: what drawings of two and of one step differ by."""
    found = []
    for name in names:
        with active(subject, name, prompt) as condition:
            one, two = (spent(condition.draw, [replace(request, steps=steps) for request in wanted]) for steps in (1, 2))
        found.append(Work(name, two.flops - one.flops, two.bytes - one.bytes))
    return tuple(found)


def spent(draw: Draw, wanted: Sequence[Request]) -> Counter:
    with Counter() as counter:
        draw(wanted)
    return counter
