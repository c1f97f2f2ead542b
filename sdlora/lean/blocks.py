"""diffusers' blocks of a U-Net and a VAE as drawing needs them: the same layers in the same order, and nothing between them.

Layers are called as modules, so that what hangs on them (adapters, memories of constant inputs) acts as ever; a feed-forward network
and its dropout are not, and hooks on these two sleep. Sums and SiLU go into tensors that the layer before has just made: a hook that
keeps such an output for later has to keep a copy.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAST = torch.channels_last
UNKNOWN = ("attention_mask", "encoder_attention_mask", "cross_attention_kwargs", "added_cond_kwargs")  # Stable Diffusion has none


class Resnet:
    """ResnetBlock2D: x + conv(silu(norm(conv(silu(norm(x))) + t)))."""

    def __init__(self, block: Any):
        self.block = block

    @staticmethod
    def fits(block: Any) -> bool:
        if type(block).__name__ != "ResnetBlock2D" or block.upsample is not None or block.downsample is not None:
            return False
        plain = block.time_embedding_norm == "default" and not block.skip_time_act and block.output_scale_factor == 1
        return plain and isinstance(block.nonlinearity, nn.SiLU)

    def __call__(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        block = self.block
        h = block.conv1(F.silu(block.norm1(x), inplace=True))
        if temb is not None:
            h = h.add_(block.time_emb_proj(F.silu(temb))[:, :, None, None])
        h = block.conv2(F.silu(block.norm2(h), inplace=True))
        return h.add_(x if block.conv_shortcut is None else block.conv_shortcut(x))


class Attention:
    """Attention over (n, L, c) by PyTorch's scaled_dot_product_attention."""

    ABSENT = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross")

    def __init__(self, attention: Any):
        self.attention = attention

    @staticmethod
    def fits(attention: Any) -> bool:
        if type(attention).__name__ != "Attention" or type(attention.processor).__name__ != "AttnProcessor2_0":
            return False
        plain = not any(getattr(attention, name) for name in Attention.ABSENT) and attention.rescale_output_factor == 1
        return plain and not attention.residual_connection

    def __call__(self, x: Tensor, encoder_hidden_states: Tensor | None = None, **words: Any) -> Tensor:
        layers = self.attention
        if not known(words):
            return type(layers).forward(layers, x, encoder_hidden_states, **words)
        told = x if encoder_hidden_states is None else encoder_hidden_states
        n, length, heads = x.shape[0], x.shape[1], layers.heads
        q, k, v = (
            y.view(n, -1, heads, y.shape[2] // heads).transpose(1, 2) for y in (layers.to_q(x), layers.to_k(told), layers.to_v(told))
        )
        return layers.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, -1))


class Transformer:
    """BasicTransformerBlock with plain layer norms, and GEGLU (Shazeer 2020, arXiv:2002.05202) in its feed-forward part.

    Of rows that are alike as far as the prompt it takes one copy (sdlora/lean/once): it gives as many as there are prompts.
    """

    def __init__(self, block: Any):
        self.block = block

    @staticmethod
    def fits(block: Any) -> bool:
        if type(block).__name__ != "BasicTransformerBlock" or block.norm_type != "layer_norm" or hasattr(block, "fuser"):
            return False
        plain = block.pos_embed is None and not block.only_cross_attention and block.attn2 is not None and block._chunk_size is None
        return plain and [type(layer).__name__ for layer in block.ff.net] == ["GEGLU", "Dropout", "Linear"]

    def __call__(self, x: Tensor, encoder_hidden_states: Tensor | None = None, **words: Any) -> Tensor:
        block = self.block
        if not known(words):
            return type(block).forward(block, x, encoder_hidden_states=encoder_hidden_states, **words)
        x = block.attn1(block.norm1(x)).add_(x)
        x = as_many(x, encoder_hidden_states) if isinstance(encoder_hidden_states, Tensor) else x  # IP adapters hand in a tuple
        x = block.attn2(block.norm2(x), encoder_hidden_states).add_(x)
        first, _, second = block.ff.net
        h, gate = first.proj(block.norm3(x)).chunk(2, dim=-1)
        return second(F.gelu(gate).mul_(h)).add_(x)


class Pixels:
    """Transformer2DModel over pixels."""

    def __init__(self, block: Any):
        self.block = block

    @staticmethod
    def fits(block: Any) -> bool:
        return type(block).__name__ == "Transformer2DModel" and block.is_input_continuous

    def __call__(self, x: Tensor, encoder_hidden_states: Tensor | None = None, **words: Any) -> Any:
        block, (n, _, height, width) = self.block, x.shape
        if not known(words) or words.get("return_dict", True):
            return type(block).forward(block, x, encoder_hidden_states, **words)
        linear, h = block.use_linear_projection, block.norm(x)
        h = h if linear else block.proj_in(h)
        h = h.permute(0, 2, 3, 1).reshape(n, height * width, -1)
        h = block.proj_in(h) if linear else h
        for inner in block.transformer_blocks:
            h = inner(h, encoder_hidden_states=encoder_hidden_states)
        h = block.proj_out(h) if linear else h
        h = h.view(len(h), height, width, -1).permute(0, 3, 1, 2)
        h = h if x.is_contiguous(memory_format=LAST) else h.contiguous()
        h = h if linear else block.proj_out(h)
        return (as_many(x, h) + h,)


def as_many(x: Tensor, rows: Tensor) -> Tensor:
    """x again and again, until it has as many rows."""
    return x if len(x) == len(rows) else torch.cat([x] * (len(rows) // len(x)))


def known(words: dict[str, Any]) -> bool:
    """Whether nothing is asked for that these blocks leave out."""
    return all(words.get(name) is None for name in UNKNOWN)


BLOCKS = (Resnet, Attention, Transformer, Pixels)
