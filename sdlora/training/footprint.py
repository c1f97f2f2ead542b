"""How much memory a training takes, estimated from shapes alone: weights, the adapter with its optimiser, activations.

The activations kept for the gradient follow from what each kind of layer keeps. A frozen Linear or convolution keeps nothing;
normalisations, SiLU, GEGLU and attention keep what the formulas below say; a trained layer keeps its input. With gradient
checkpointing (Chen et al. 2016, arXiv:1604.06174) only the inputs of blocks stay, and one block at a time is computed again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sdlora import apply, hardware, models
from sdlora.training import placement, planning
from sdlora.training.config import UNET, TrainConfig
from sdlora.training.planning import Target

GIB = 2**30
TOKENS = 77
STATE = 16  # bytes per trained number: itself, its gradient and AdamW's two moments, all fp32
TEXT_KEPT = 22  # numbers kept per token and width in a layer of CLIP's text encoder
BACKWARD = 2  # of the largest activation: its gradient and that of what it was made from, while both are alive


@dataclass(frozen=True)
class Footprint:
    """Bytes, at the worst moment of a step; what libraries and allocators take beside their tensors is not in it."""

    weights: int  # of the base's parts that stay, and of the adapter as it is
    adapter: int  # trained numbers, gradients, moments
    activations: int
    images: int  # per batch

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations


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
    trained = set(apply.select(modules, list(config.parts)))
    blocks = unet_blocks(unet, height, width, trained)
    if config.gradient_checkpointing:
        kept = sum(block.entry for block in blocks) + max(block.inside for block in blocks)
    else:
        kept = sum(block.inside for block in blocks)
    largest = unet.config.block_out_channels[0] * height * width
    numbers = kept + BACKWARD * largest + text_numbers(modules, config)
    weights = sum(_size(module) for name, module in modules.items() if name in config.learning or name == UNET) * bytes_
    adapter = STATE * sum(target.parameters for target in targets(config, modules))
    return Footprint(weights, adapter, round(images * numbers * bytes_), images)


def targets(config: TrainConfig, modules: Mapping[str, nn.Module]) -> tuple[Target, ...]:
    return planning.targets_of(config, modules)


def latent_size(config: TrainConfig, unet: Any) -> tuple[int, int]:
    """Of a square picture at the run's resolution; 8 pixels a latent, 4 for the built-in base."""
    factor = 4 if config.base in models.BUILT_IN else 8
    side = config.resolution // factor if config.resolution else unet.config.sample_size
    return side, side


def unet_blocks(unet: Any, height: int, width: int, trained: set[str]) -> list[Kept]:
    """Every residual and every transformer block."""
    count = len(unet.config.block_out_channels)
    result = []
    for name, module in unet.named_modules():
        kind = type(module).__name__
        if kind not in ("ResnetBlock2D", "BasicTransformerBlock"):
            continue
        level = _level(name, count)
        places = (height >> level) * (width >> level)
        inside = _resnet(module, name, trained) if kind == "ResnetBlock2D" else _transformer(module, name, trained, places)
        entry = module.in_channels if kind == "ResnetBlock2D" else module.norm1.normalized_shape[0]
        outside = 0 if kind == "ResnetBlock2D" or not name.endswith("transformer_blocks.0") else 2 * entry  # norm and skip around
        result.append(Kept(places * (inside + outside), places * (entry + outside)))
    return result


def _level(name: str, count: int) -> int:
    """How often the picture was halved where the block lies."""
    if name.startswith("mid_block"):
        return count - 1
    number = int(name.split(".")[1])
    return number if name.startswith("down") else count - 1 - number


def _resnet(module: Any, name: str, trained: set[str]) -> float:
    """Two normalisations and two SiLU keep their inputs; a trained convolution its own."""
    enter, leave = module.in_channels, module.out_channels
    own = sum(width for part, width in (("conv1", enter), ("conv2", leave), ("conv_shortcut", enter)) if f"unet.{name}.{part}" in trained)
    return 2 * enter + 2 * leave + own


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
    return [f"{'memory':8} about {gib(found.total)} ({parts})"]


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.0f} MiB"
