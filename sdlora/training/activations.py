"""How many numbers the networks of a base write down while they compute, from shapes alone: with a gradient, without, and in the VAE.

What is kept for the gradient follows from what PyTorch keeps for each kind of layer. A frozen Linear keeps nothing; a convolution
keeps its input even when frozen, and so do normalisations, SiLU and a trained Linear; attention keeps queries, keys, values and
result. Blocks that compute as one (training/units) keep what they save by name. The constants were counted with train/memory.py's
tensors without numbers: docs/memory.md has the comparison.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sdlora.training.units import heads

TOKENS = 77
KINDS = ("ResnetBlock2D", "BasicTransformerBlock", "Transformer2DModel", "Downsample2D", "Upsample2D")
TEXT_KEPT = 20  # numbers kept per token and width in a layer of CLIP's text encoder; 18 were counted with its attention trained
BACKWARD = 2  # of the largest activation: its gradient and that of what it was made from, while both are alive
HALVES = 3  # of a joined feed-forward's inner width: the gradients of GEGLU's halves and of what they make
ENCODER, DECODER = 5, 3  # tensors that the VAE has at once at full size: of its first level's channels, and of its second's


@dataclass(frozen=True)
class Kept:
    """What the gradient needs of one block, in numbers per picture."""

    inside: float
    entry: float  # its input alone
    through: float = 0  # what its backward pass takes beside


def with_gradient(unet: Any, height: int, width: int, trained: Collection[str], checkpointing: bool, joined: bool = False) -> float:
    """Per picture with latents of (height, width). With checkpoints (Chen et al. 2016, arXiv:1604.06174) only the inputs of blocks
    stay, and one block at a time is computed again. `joined`: with blocks that compute as one, as a CPU has them in fp32."""
    blocks = unet_blocks(unet, height, width, trained, joined)
    largest = unet.config.block_out_channels[0] * height * width
    if checkpointing:
        kept = sum(block.entry for block in blocks) + max(block.inside - block.entry for block in blocks)
    else:
        kept = sum(block.inside for block in blocks)
    return kept + max(BACKWARD * largest, *(block.through for block in blocks))


def without_gradient(unet: Any, height: int, width: int) -> float:
    """Per picture: what waits for the way up, and the block that is at work."""
    settings = unet.config
    channels, layers = settings.block_out_channels, settings.layers_per_block
    waiting = channels[0] * height * width
    for level, count in enumerate(channels):
        inside = layers if isinstance(layers, int) else layers[level]
        waiting += count * inside * (height >> level) * (width >> level)
        if level + 1 < len(channels):
            waiting += count * (height >> (level + 1)) * (width >> (level + 1))
    return waiting + max(block.inside for block in unet_blocks(unet, height, width, ()))


def encoding(vae: Any, height: int, width: int, tiling: bool) -> float:
    """Of one picture of (height, width) pixels."""
    return ENCODER * vae.config.block_out_channels[0] * _tile(vae, height, tiling) * _tile(vae, width, tiling)


def decoding(vae: Any, height: int, width: int, tiling: bool) -> float:
    """Of one picture of (height, width) pixels."""
    channels = vae.config.block_out_channels
    return DECODER * channels[min(1, len(channels) - 1)] * _tile(vae, height, tiling) * _tile(vae, width, tiling)


def _tile(vae: Any, side: int, tiling: bool) -> int:
    return min(side, vae.config.sample_size) if tiling else side


def widest(unet: Any, height: int, width: int) -> int:
    """Numbers in the largest input of a convolution."""
    count, largest = len(unet.config.block_out_channels), 0
    for name, module in unet.named_modules():
        if type(module).__name__ == "ResnetBlock2D":
            level = _level(name, count)
            largest = max(largest, module.in_channels * (height >> level) * (width >> level))
    return largest


def unet_blocks(unet: Any, height: int, width: int, trained: Collection[str], joined: bool = False) -> list[Kept]:
    """Every residual and every transformer block, and what lies around them, whose inputs are its all."""
    count = len(unet.config.block_out_channels)
    result = [_whole(3 * unet.config.block_out_channels[0] * height * width)]  # the last normalisation, SiLU and convolution
    for name, module in unet.named_modules():
        kind = type(module).__name__
        if kind not in KINDS:
            continue
        level = _level(name, count)
        if kind == "Upsample2D":
            level -= 1
        places = (height >> level) * (width >> level)
        if kind == "ResnetBlock2D":
            times = 2 if joined and not _trains(name, trained, "conv1", "conv2", "conv_shortcut") else 3  # not what SiLU is of
            result.append(Kept(places * times * (module.in_channels + module.out_channels), places * module.in_channels))
        elif kind == "BasicTransformerBlock":
            numbers = (_joined if joined else _transformer)(module, name, trained, places)
            through = places * HALVES * module.ff.net[2].in_features if joined else 0
            result.append(Kept(places * numbers, places * module.norm1.normalized_shape[0], through))
        elif kind == "Transformer2DModel":
            apart = isinstance(module.proj_in, nn.Conv2d) and (not joined or _trains(name, trained, "proj_in", "proj_out"))
            result.append(_whole(places * module.norm.num_channels * (3 if apart else 1)))
        else:
            result.append(_whole(places * module.channels))
    return result


def _trains(name: str, trained: Collection[str], *layers: str) -> bool:
    return any(f"unet.{name}.{layer}" in trained for layer in layers)


def _whole(numbers: float) -> Kept:
    return Kept(numbers, numbers)


def _level(name: str, count: int) -> int:
    """How often the picture was halved where the block lies."""
    if name.startswith("mid_block"):
        return count - 1
    number = int(name.split(".")[1])
    return number if name.startswith("down") else count - 1 - number


def _transformer(module: Any, name: str, trained: Collection[str], places: int) -> float:
    """Per place: three normalisations, self- and cross-attention (queries, keys, values, result), GEGLU (three times its width)."""
    width = module.norm1.normalized_shape[0]
    inner = module.ff.net[2].in_features
    own = 0.0
    for attention in ("attn1", "attn2"):
        own += width * _trains(name, trained, *(f"{attention}.to_{part}" for part in "qkv"))
    own += width * _trains(name, trained, "ff.net.0.proj") + inner * _trains(name, trained, "ff.net.2")
    context = 2 * TOKENS * width / places
    return 3 * width + 4 * width + 2 * width + context + 3 * inner + own


def _joined(module: Any, name: str, trained: Collection[str], places: int) -> float:
    """Per place, of a block that computes as one: each input and its norm; queries, keys, values and result, with the matrix of weights
    where it is small (units/heads.py); both halves of GEGLU."""
    width = module.norm1.normalized_shape[0]
    inner = module.ff.net[2].in_features
    own = 0.0
    for attention, length in ((module.attn1, places), (module.attn2, TOKENS)):
        few = places * length <= heads.FEW
        own += width * (4 + 2 * length / places) + attention.heads * (length if few else 1)
    return own + width + 2 * inner + width * _trains(name, trained, "ff.net.0.proj") + inner * _trains(name, trained, "ff.net.2")


def text(encoders: Mapping[str, Any]) -> float:
    """Per caption, of text encoders that learn."""
    return sum(TEXT_KEPT * one.config.num_hidden_layers * one.config.hidden_size * TOKENS for one in encoders.values())
