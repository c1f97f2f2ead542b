"""How much memory a training takes, estimated from shapes alone: weights, the adapter with its optimiser, activations.

The activations kept for the gradient follow from what PyTorch keeps for each kind of layer. A frozen Linear keeps nothing; a
convolution keeps its input even when frozen, and so do normalisations, SiLU and a trained Linear; attention keeps queries, keys,
values and result. With gradient checkpointing (Chen et al. 2016, arXiv:1604.06174) only the inputs of blocks stay, and one block
at a time is computed again. Beside counts of the true networks (docs/memory.md) this is within 2 %, with checkpointing within 15 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sdlora import hardware, models
from sdlora.training import placement, planning
from sdlora.training.config import UNET, TrainConfig
from sdlora.training.trainable import layers

GIB = 2**30
TOKENS = 77
STATE = 16  # bytes per trained number: itself, its gradient and AdamW's two moments, all fp32
KINDS = ("ResnetBlock2D", "BasicTransformerBlock", "Transformer2DModel", "Downsample2D", "Upsample2D")
TEXT_KEPT = 20  # numbers kept per token and width in a layer of CLIP's text encoder; 18 were counted with its attention trained
SCRATCH, BASIC = 12, 15 * 2**20  # times the widest input, for its 3 × 3 patches; bytes. Fitted to a CPU: docs/memory.md
BACKWARD = 2  # of the largest activation: its gradient and that of what it was made from, while both are alive


@dataclass(frozen=True)
class Footprint:
    """Bytes, at the worst moment of a step; what libraries take is not in it."""

    weights: int  # of the base's parts that stay, and of the adapter as it is
    adapter: int  # trained numbers, gradients, moments
    activations: int
    scratch: int  # what the CPU's convolutions write down for themselves; on other devices it was not measured, and is 0
    images: int  # per batch

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.scratch


@dataclass(frozen=True)
class Kept:
    """What the gradient needs of one block, in numbers per picture."""

    inside: float
    entry: float  # its input alone


def estimate(config: TrainConfig, modules: Mapping[str, nn.Module] | None = None, size: tuple[int, int] | None = None) -> Footprint:
    """Of the training that `config` describes; `modules` are the base's without weights, `size` the latents' height and width."""
    config = config.settled()
    modules = modules or models.skeleton(config.base)
    where = placement.device(config.device)
    precision = placement.precision(config.precision, where)
    bytes_ = torch.finfo(hardware.dtype(precision)).bits // 8
    unet: Any = modules[UNET]
    height, width = size or latent_size(config, unet)
    images = config.batch_size + config.priors_per_batch
    trained = set(layers(modules, config))
    blocks = unet_blocks(unet, height, width, trained)
    if config.gradient_checkpointing:
        kept = sum(block.entry for block in blocks) + max(block.inside - block.entry for block in blocks)
    else:
        kept = sum(block.inside for block in blocks)
    largest = unet.config.block_out_channels[0] * height * width
    numbers = kept + BACKWARD * largest + text_numbers(modules, config)
    weights = sum(_size(module) for name, module in modules.items() if name in config.learning or name == UNET) * bytes_
    adapter = STATE * sum(target.parameters for target in planning.targets_of(config, modules))
    scratch = BASIC + SCRATCH * widest(unet, height, width) * images * bytes_ if where.type == "cpu" else 0
    return Footprint(weights, adapter, round(images * numbers * bytes_), scratch, images)


def widest(unet: Any, height: int, width: int) -> int:
    """Numbers in the largest input of a convolution."""
    count, largest = len(unet.config.block_out_channels), 0
    for name, module in unet.named_modules():
        if type(module).__name__ == "ResnetBlock2D":
            level = _level(name, count)
            largest = max(largest, module.in_channels * (height >> level) * (width >> level))
    return largest


def latent_size(config: TrainConfig, unet: Any) -> tuple[int, int]:
    """Of a square picture at the run's largest resolution, than which no bucket has more; 8 pixels a latent, 4 for the built-in base."""
    factor = 4 if config.base in models.BUILT_IN else 8
    side = max(config.resolutions) // factor if config.resolutions else unet.config.sample_size
    return side, side


def unet_blocks(unet: Any, height: int, width: int, trained: set[str]) -> list[Kept]:
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
            result.append(Kept(places * 3 * (module.in_channels + module.out_channels), places * module.in_channels))
        elif kind == "BasicTransformerBlock":
            result.append(Kept(places * _transformer(module, name, trained, places), places * module.norm1.normalized_shape[0]))
        elif kind == "Transformer2DModel":
            convolutions = isinstance(module.proj_in, nn.Conv2d)
            result.append(_whole(places * module.norm.num_channels * (3 if convolutions else 1)))
        else:
            result.append(_whole(places * module.channels))
    return result


def _whole(numbers: float) -> Kept:
    return Kept(numbers, numbers)


def _level(name: str, count: int) -> int:
    """How often the picture was halved where the block lies."""
    if name.startswith("mid_block"):
        return count - 1
    number = int(name.split(".")[1])
    return number if name.startswith("down") else count - 1 - number


def _transformer(module: Any, name: str, trained: set[str], places: int) -> float:
    """Per place: three normalisations, self- and cross-attention (queries, keys, values, result), GEGLU (three times its width)."""
    width = module.norm1.normalized_shape[0]
    inner = module.ff.net[2].in_features
    own = 0.0
    for attention in ("attn1", "attn2"):
        own += width * any(f"unet.{name}.{attention}.to_{part}" in trained for part in "qkv")
    own += width * (f"unet.{name}.ff.net.0.proj" in trained) + inner * (f"unet.{name}.ff.net.2" in trained)
    context = 2 * TOKENS * width / places
    return 3 * width + 4 * width + 2 * width + context + 3 * inner + own


def text_numbers(modules: Mapping[str, nn.Module], config: TrainConfig) -> float:
    """Per caption, of the text encoders that learn."""
    result = 0.0
    for name in config.learning:
        if name != UNET:
            settings: Any = modules[name].config
            result += TEXT_KEPT * settings.num_hidden_layers * settings.hidden_size * TOKENS
    return result


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def lines(found: Footprint) -> list[str]:
    """In words."""
    parts = f"weights {gib(found.weights)}, adapter and optimiser {gib(found.adapter)}, activations {gib(found.activations)}"
    parts += f", the CPU's scratch {gib(found.scratch)}" if found.scratch else ""
    return [f"{'memory':8} about {gib(found.total)} ({parts})"]


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.0f} MiB"
