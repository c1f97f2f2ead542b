"""softmax(s Q Kᵀ) V of all heads, forwards and backwards.

Over few places the matrix of weights is kept, and all is plain products; over many it would take too much memory, and PyTorch's
own attention computes it piece by piece (Dao et al. 2022, arXiv:2205.14135).
"""

import torch
from torch import Tensor

FEW = 1 << 14  # queries × keys of a head

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def forward(q: Tensor, k: Tensor, v: Tensor, n: int, heads: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Rows (n l, c), (n s, c), (n s, c) -> rows (n l, c), and what `backward` needs."""
    q, k, v = (split(t, n, heads) for t in (q, k, v))
    factor = q.shape[-1] ** -0.5
    if q.shape[2] * k.shape[2] > FEW:
        out, logs = flash(q, k, v, 0.0, False, scale=factor)
        return together(out), (q, k, v, out, logs)
    flat_q, flat_k, flat_v = q.flatten(0, 1) * factor, k.flatten(0, 1), v.flatten(0, 1)
    weights = torch.softmax(torch.bmm(flat_q, flat_k.transpose(1, 2)), -1)
    return together(torch.bmm(weights, flat_v).view_as(q)), (flat_q, flat_k, flat_v, weights)


def backward(g: Tensor, kept: tuple[Tensor, ...], n: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the rows q, k and v."""
    own = split(g, n, heads)
    factor = own.shape[-1] ** -0.5
    if len(kept) == 5:
        q, k, v, out, logs = kept
        dq, dk, dv = flash_backward(own, q, k, v, out, logs, 0.0, False, scale=factor)
        return together(dq), together(dk), together(dv)
    q, k, v, weights = kept
    own = own.flatten(0, 1)
    dv = torch.bmm(weights.transpose(1, 2), own)
    ds = torch._softmax_backward_data(torch.bmm(own, v.transpose(1, 2)), weights, -1, weights.dtype)
    dq, dk = torch.bmm(ds, k).mul_(factor), torch.bmm(ds.transpose(1, 2), q)
    return tuple(together(t.unflatten(0, (n, heads))) for t in (dq, dk, dv))  # type: ignore[return-value]


def split(rows: Tensor, n: int, heads: int) -> Tensor:
    """(n l, c) -> (n, heads, l, d), a view."""
    return rows.view(n, rows.shape[0] // n, heads, -1).transpose(1, 2)


def together(x: Tensor) -> Tensor:
    """(n, heads, l, d) -> (n l, c)."""
    n, heads, length, d = x.shape
    return x.transpose(1, 2).reshape(n * length, heads * d)
