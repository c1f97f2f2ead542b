"""A residual block of frozen convolutions as one node of the gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdlora.training.units import lowrank

group_norm, group_norm_backward = torch.native_group_norm, torch.ops.aten.native_group_norm_backward
silu_backward, convolution_backward = torch.ops.aten.silu_backward, torch.ops.aten.convolution_backward


def forwards(module: nn.Module) -> dict[str, Callable[..., Any]]:
    """What replaces the module's own forward, if it is a block as Stable Diffusion's U-Nets have it."""
    from diffusers.models.resnet import ResnetBlock2D

    if not isinstance(module, ResnetBlock2D) or not plain(module):
        return {}
    block: Any = module
    own = block.forward
    layers = [layer for layer in (block.conv1, block.conv2, block.conv_shortcut) if layer is not None]

    def forward(input_tensor: Tensor, temb: Tensor, *rest: Any, **words: Any) -> Tensor:
        if rest or words or not lowrank.usable(layers) or any(lowrank.CHILD in layer._modules for layer in layers):
            return own(input_tensor, temb, *rest, **words)
        return Residual.apply(block, input_tensor.contiguous(), block.time_emb_proj(block.nonlinearity(temb)))

    return {"forward": forward}


def plain(block: Any) -> bool:
    """SiLU, the time added, no change of size, no dropout."""
    return (
        block.time_embedding_norm == "default"
        and block.time_emb_proj is not None
        and not block.skip_time_act
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1
        and isinstance(block.nonlinearity, nn.SiLU)
        and not (block.dropout.p and block.dropout.training)
    )


class Residual(torch.autograd.Function):
    """shortcut(x) + conv₂(silu(norm₂(conv₁(silu(norm₁ x)) + t))) for x (n, c, h, w) and the projected time t (n, c')."""

    @staticmethod
    def forward(ctx: Any, block: Any, x: Tensor, time: Tensor) -> Tensor:
        normed, mean, rstd = normalised(x, block.norm1)
        between = convolved(F.silu(normed), block.conv1).add_(time[:, :, None, None])
        normed2, mean2, rstd2 = normalised(between, block.norm2)
        out = convolved(F.silu(normed2), block.conv2).add_(x if block.conv_shortcut is None else convolved(x, block.conv_shortcut))
        ctx.block = block
        ctx.save_for_backward(x, normed, mean, rstd, between, normed2, mean2, rstd2)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, normed, mean, rstd, between, normed2, mean2, rstd2 = ctx.saved_tensors
        block, grad = ctx.block, grad.contiguous()
        inner = _silu_through(_conv_through(grad, between, block.conv2), normed2)
        inner = norm_through(inner, between, mean2, rstd2, block.norm2)
        time = inner.sum((2, 3)) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[1]:
            return None, None, time
        inner = _silu_through(_conv_through(inner, x, block.conv1), normed)
        inner = norm_through(inner, x, mean, rstd, block.norm1)
        return None, inner.add_(grad if block.conv_shortcut is None else _conv_through(grad, x, block.conv_shortcut)), time


def convolved(x: Tensor, conv: nn.Conv2d) -> Tensor:
    return conv._conv_forward(x, conv.weight, conv.bias)


def _conv_through(g: Tensor, x: Tensor, conv: nn.Conv2d) -> Tensor:
    """dL/dx of a frozen convolution; of x only the shape counts."""
    wanted = [True, False, False]
    return convolution_backward(g, x, conv.weight, None, conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups, wanted)[0]


def _silu_through(g: Tensor, x: Tensor) -> Tensor:
    """In place of g."""
    return silu_backward.grad_input(g, x, grad_input=g)


def normalised(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor, Tensor]:
    """What the norm makes of x (n, c, h, w), and the groups' means and inverse deviations."""
    n, c, height, width = x.shape
    return group_norm(x, norm.weight, norm.bias, n, c, height * width, norm.num_groups, norm.eps)


def norm_through(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, norm: nn.GroupNorm) -> Tensor:
    """dL/dx of a frozen group norm."""
    n, c, height, width = x.shape
    return group_norm_backward(g, x, mean, rstd, norm.weight, n, c, height * width, norm.num_groups, [True, False, False])[0]
