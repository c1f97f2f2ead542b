"""A transformer block: x + attention(norm x), the same with the prompt, x + feed-forward(norm x); one node of the gradient each."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.training.units import heads, lowrank
from sdlora.training.units.lowrank import factors, gradients, onto, product, scale

layer_norm_backward = torch.ops.aten.native_layer_norm_backward
gelu, gelu_backward = torch.ops.aten.gelu, torch.ops.aten.gelu_backward


def forwards(module: nn.Module) -> dict[str, Callable[..., Any]]:
    """What replaces the module's own forward, if it is a block as Stable Diffusion's U-Nets have it."""
    from diffusers.models.attention import BasicTransformerBlock

    if not isinstance(module, BasicTransformerBlock) or not plain(module):
        return {}
    block: Any = module
    own, layers = block.forward, [*linears(block.attn1), *linears(block.attn2), block.ff.net[0].proj, block.ff.net[2]]

    def forward(
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        *rest: Any,
        **words: Any,
    ) -> Tensor:
        """The time and what is in `rest` and `words` are for other kinds of norm; checkpoints of activations give all of it by place."""
        told = attention_mask is None and encoder_attention_mask is None and cross_attention_kwargs is None
        if not (told and encoder_hidden_states is not None and lowrank.usable(layers)):
            masked = attention_mask, encoder_hidden_states, encoder_attention_mask
            return own(hidden_states, *masked, timestep, cross_attention_kwargs, *rest, **words)
        x = attended(block.norm1, block.attn1, hidden_states.contiguous(), None)
        x = attended(block.norm2, block.attn2, x, encoder_hidden_states)
        up, down = block.ff.net[0].proj, block.ff.net[2]
        return Feed.apply(block.norm3, up, down, x, *factors(up), *factors(down))

    return {"forward": forward}


def plain(block: Any) -> bool:
    """Layer norms, two attentions without norms of their own, GEGLU, no dropout."""
    from diffusers.models.activations import GEGLU
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    parts = (block.attn1, block.attn2)
    return (
        block.norm_type == "layer_norm"
        and block.pos_embed is None
        and not hasattr(block, "fuser")
        and block._chunk_size is None
        and not block.only_cross_attention
        and all(isinstance(norm, nn.LayerNorm) for norm in (block.norm1, block.norm2, block.norm3))
        and all(isinstance(part, nn.Module) and type(part.processor) in (AttnProcessor, AttnProcessor2_0) for part in parts)
        and not any(
            getattr(part, norm, None) for part in parts for norm in ("group_norm", "spatial_norm", "norm_q", "norm_k", "norm_cross")
        )
        and not any(part.residual_connection or part.rescale_output_factor != 1 or getattr(part, "is_causal", False) for part in parts)
        and all(isinstance(layer, nn.Linear) for part in parts for layer in linears(part))
        and type(block.ff.net[0]) is GEGLU
        and len(block.ff.net) == 3
        and not any(isinstance(module, nn.Dropout) and module.p and module.training for module in block.modules())
    )


def linears(attention: Any) -> list[nn.Module]:
    return [attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]]


def attended(norm: nn.LayerNorm, attention: Any, x: Tensor, context: Tensor | None) -> Tensor:
    return Attend.apply(norm, attention, x, context, *(factor for layer in linears(attention) for factor in factors(layer)))


class Attend(torch.autograd.Function):
    """x + O softmax(Q Kᵀ / √d) V of the normed x (n, l, c), with keys and values of it, or of the context (n, s, w)."""

    @staticmethod
    def forward(ctx: Any, norm: nn.LayerNorm, attention: Any, x: Tensor, context: Tensor | None, *ab: Tensor | None) -> Tensor:
        q, k, v, o = layers = _with_factors(linears(attention), ab)
        y, mean, rstd = torch.native_layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        rows = y.flatten(0, 1)
        seen = rows if context is None else context.flatten(0, 1)
        inner, kept = heads.forward(product(rows, *q), product(seen, *k), product(seen, *v), len(x), attention.heads)
        ctx.norm, ctx.layers, ctx.heads, ctx.context = norm, [(layer, s) for layer, _, _, s in layers], attention.heads, context is not None
        ctx.save_for_backward(x, mean, rstd, rows, seen, inner, *ab, *kept)
        return product(inner, *o).view_as(x).add_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, mean, rstd, rows, seen, inner, *rest = ctx.saved_tensors
        ab, kept = rest[:8], tuple(rest[8:])
        q, k, v, o = ((layer, a, b, s) for (layer, s), a, b in zip(ctx.layers, ab[::2], ab[1::2], strict=True))
        g = grad.reshape(-1, grad.shape[-1])
        for_o = gradients(g, inner, *o[1:])
        dq, dk, dv = heads.backward(onto(None, g, *o), kept, len(x), ctx.heads)
        for_q, for_k, for_v = gradients(dq, rows, *q[1:]), gradients(dk, seen, *k[1:]), gradients(dv, seen, *v[1:])
        dx = dcontext = None
        if ctx.context and ctx.needs_input_grad[3]:
            dcontext = onto(onto(None, dk, *k), dv, *v).view(len(x), -1, seen.shape[-1])
        if ctx.needs_input_grad[2]:
            dy = onto(None, dq, *q)
            dy = dy if ctx.context else onto(onto(dy, dk, *k), dv, *v)
            dx = _through(ctx.norm, dy, x, mean, rstd).add_(grad)
        return None, None, dx, dcontext, *for_q, *for_k, *for_v, *for_o


class Feed(torch.autograd.Function):
    """x + W₂ (h ∘ gelu(g)), h and g the halves of W₁ norm(x).  GEGLU: Shazeer 2020, arXiv:2002.05202, eq. 6."""

    @staticmethod
    def forward(ctx: Any, norm: nn.LayerNorm, up: nn.Linear, down: nn.Linear, x: Tensor, *ab: Tensor | None) -> Tensor:
        first, second = _with_factors([up, down], ab)
        y, mean, rstd = torch.native_layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        rows = y.flatten(0, 1)
        both = product(rows, *first)
        h, gate = both.chunk(2, dim=1)
        inner = gelu(gate).mul_(h)
        ctx.norm, ctx.layers = norm, [(layer, s) for layer, _, _, s in (first, second)]
        ctx.save_for_backward(x, mean, rstd, rows if ab[0] is not None else None, both, inner if ab[2] is not None else None, *ab)
        return product(inner, *second).view_as(x).add_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, mean, rstd, rows, both, inner, *ab = ctx.saved_tensors
        first, second = ((layer, a, b, s) for (layer, s), a, b in zip(ctx.layers, ab[::2], ab[1::2], strict=True))
        g = grad.reshape(-1, grad.shape[-1])
        for_second = gradients(g, inner, *second[1:])
        dm = onto(None, g, *second)
        h, gate = both.chunk(2, dim=1)
        dboth = torch.empty_like(both)
        dh, dgate = dboth.chunk(2, dim=1)
        torch.mul(dm, gelu(gate), out=dh)
        dgate.copy_(gelu_backward(dm.mul_(h), gate))
        for_first = gradients(dboth, rows, *first[1:])
        dx = None
        if ctx.needs_input_grad[3]:
            dx = _through(ctx.norm, onto(None, dboth, *first), x, mean, rstd).add_(grad)
        return None, None, None, dx, *for_first, *for_second


def _with_factors(layers: list[Any], ab: tuple[Tensor | None, ...]) -> list[tuple[Any, Tensor | None, Tensor | None, float]]:
    return [(layer, a, b, scale(layer, a)) for layer, a, b in zip(layers, ab[::2], ab[1::2], strict=True)]


def _through(norm: nn.LayerNorm, g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """dL/dx of a frozen layer norm, shaped like x."""
    wanted = [True, False, False]
    return layer_norm_backward(g.view_as(x), x, norm.normalized_shape, mean, rstd, norm.weight, norm.bias, wanted)[0]
