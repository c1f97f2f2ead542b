"""Where a U-Net's pictures become the rows of a transformer, and rows pictures again: norm, projection, and the way around it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.training.units import lowrank
from sdlora.training.units.residual import norm_through, normalised


def forwards(module: nn.Module) -> dict[str, Callable[..., Any]]:
    """What replaces the module's own first and last part, if it is a transformer as Stable Diffusion's U-Nets have it."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    names = ("_operate_on_continuous_inputs", "_get_output_for_continuous_inputs")  # as diffusers 0.30 to 0.42 call them
    if not isinstance(module, Transformer2DModel) or not module.is_input_continuous or not all(hasattr(module, name) for name in names):
        return {}
    whole: Any = module
    enter, leave = (getattr(whole, name) for name in names)

    def begin(hidden_states: Tensor) -> tuple[Tensor, int]:
        if not _usable(whole.proj_in):
            return enter(hidden_states)
        rows = Begin.apply(whole.norm, whole.proj_in, hidden_states.contiguous())
        return rows, rows.shape[-1]

    def end(hidden_states: Tensor, residual: Tensor, **sizes: int) -> Tensor:
        if not _usable(whole.proj_out):
            return leave(hidden_states=hidden_states, residual=residual, **sizes)
        return End.apply(whole.proj_out, hidden_states, residual.contiguous())

    return dict(zip(names, (begin, end), strict=True))


def _usable(layer: nn.Module) -> bool:
    return lowrank.usable([layer]) and lowrank.CHILD not in layer._modules


class Begin(torch.autograd.Function):
    """W norm(x) as rows: (n, c, h, w) -> (n, h w, c')."""

    @staticmethod
    def forward(ctx: Any, norm: nn.GroupNorm, layer: Any, x: Tensor) -> Tensor:
        y, mean, rstd = normalised(x, norm)
        ctx.norm, ctx.layer = norm, layer
        ctx.save_for_backward(x, mean, rstd)
        return torch.addmm(layer.bias, rows_of(y), layer.weight.flatten(1).T).view(len(x), -1, len(layer.weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, mean, rstd = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1]) @ ctx.layer.weight.flatten(1)
        return None, None, norm_through(picture_of(g, x).contiguous(), x, mean, rstd, ctx.norm)


class End(torch.autograd.Function):
    """residual + W h as a picture: rows (n, h w, c') and the residual (n, c, h, w) -> (n, c, h, w)."""

    @staticmethod
    def forward(ctx: Any, layer: Any, hidden: Tensor, residual: Tensor) -> Tensor:
        ctx.layer, ctx.shape = layer, hidden.shape
        return residual + picture_of(torch.addmm(layer.bias, hidden.flatten(0, 1), layer.weight.flatten(1).T), residual)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows = (rows_of(grad.contiguous()) @ ctx.layer.weight.flatten(1)).view(ctx.shape)
        return None, rows, grad if ctx.needs_input_grad[2] else None


def rows_of(x: Tensor) -> Tensor:
    """(n, c, h, w) -> (n h w, c)."""
    return x.flatten(2).transpose(1, 2).reshape(-1, x.shape[1])


def picture_of(rows: Tensor, like: Tensor) -> Tensor:
    """(n h w, c) -> (n, c, h, w), a view; `like` has the right n, h and w."""
    n, _, height, width = like.shape
    return rows.view(n, height, width, -1).permute(0, 3, 1, 2)
