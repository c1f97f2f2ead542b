"""How much memory a training takes, estimated from shapes alone: its steps, and what comes before and between them.

A step has the weights that it needs, the adapter with its optimiser, and activations. Pictures are encoded before the first step,
with the VAE; samples are drawn and held-out pictures looked at between two. Each of these has a peak of its own, and the largest
of all is what a device has to hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sdlora import hardware, models
from sdlora.checkpoints import build
from sdlora.layers import named_layers
from sdlora.training import activations, optimizers, placement, processes, sharding
from sdlora.training.config import UNET, TrainConfig
from sdlora.training.sharding import Sharding
from sdlora.training.trainable import layers
from sdlora.training.validation import ROWS

GIB = 2**30
VAE = "vae"
NUMBER = 4  # bytes of what is trained, and of its gradient: both fp32
# What a CPU's convolutions take beside their results, fitted to measurements (docs/memory.md): times the widest input, for its 3 × 3
# patches, with a gradient; in blocks that compute as one, once or with checkpoints of activations twice; without a gradient; and bytes
SCRATCH, JOINED, TWICE, FORWARD, BASIC = 12, 4, 8, 8, 15 * 2**20
TOGETHER = 1024  # places of latents in a batch of samples, or one picture: what sdlora.generation draws at once


@dataclass(frozen=True)
class Footprint:
    """Bytes at the worst moment of each phase; what libraries take is not in it."""

    weights: int  # of the base's parts that stay, and of the adapter as it is
    adapter: int  # trained numbers, gradients, the optimiser's state, the average
    activations: int
    scratch: int  # what the CPU's convolutions write down for themselves; on other devices it was not measured, and is 0
    images: int  # per batch
    others: Mapping[str, int]  # phase beside the steps, in words -> bytes
    split: int = 1  # processes that share the base

    @property
    def step(self) -> int:
        return self.weights + self.adapter + self.activations + self.scratch

    @property
    def total(self) -> int:
        return max(self.step, *self.others.values())

    @property
    def worst(self) -> str | None:
        """The phase beside the steps that takes the most; None where a step takes more."""
        name = max(self.others, key=lambda phase: self.others[phase])
        return name if self.others[name] > self.step else None


def networks(config: TrainConfig) -> dict[str, nn.Module]:
    """The base's U-Net, text encoders and VAE without weights."""
    vae = models.opened(config.base, **config.reading).configs[VAE]
    return models.skeleton(config.base) | {VAE: build.skeleton("AutoencoderKL", vae)}


def estimate(config: TrainConfig, modules: Mapping[str, nn.Module] | None = None, size: tuple[int, int] | None = None) -> Footprint:
    """Of the training that `config` describes; `modules` are the base's `networks`, `size` the latents' height and width."""
    return Estimate.of(config, modules, size).footprint()


@dataclass(frozen=True)
class Estimate:
    """What the phases have in common."""

    config: TrainConfig  # settled
    modules: Mapping[str, nn.Module]  # U-Net and text encoders
    vae: Any
    where: torch.device
    bytes: int  # of a weight and of an activation
    vae_bytes: int
    size: tuple[int, int]  # of the latents in training
    factor: int  # pixels a latent
    how: Sharding | None = None  # where the base is split
    processes: int = 1

    @classmethod
    def of(cls, config: TrainConfig, modules: Mapping[str, nn.Module] | None = None, size: tuple[int, int] | None = None) -> "Estimate":
        config = config.settled()
        rest = dict(modules or networks(config))
        vae: Any = rest.pop(VAE)
        where = placement.device(config.device)
        dtype = hardware.dtype(placement.precision(config.precision, where))
        upcast = "text_encoder_2" in rest and vae.config.force_upcast
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        unet: Any = rest[UNET]
        side = max(config.resolutions) // factor if config.resolutions else unet.config.sample_size  # a square: no bucket has more
        sizes = dtype.itemsize, models.vae_dtype(dtype, upcast).itemsize, size or (side, side), factor
        return cls(config, rest, vae, where, *sizes, sharding.told(), processes.launched())

    @property
    def unet(self) -> Any:
        return self.modules[UNET]

    @property
    def apart(self) -> bool:
        """Whether what waits does so in another memory."""
        return self.where.type == "cuda"

    @property
    def joined(self) -> bool:
        """Whether the U-Net's blocks compute as one in a step."""
        exact = self.where.type == "cpu" and self.bytes == hardware.dtype("fp32").itemsize
        return exact and not (self.config.compile or self.how or self.config.dropout.on)

    @property
    def drawn(self) -> bool:
        return bool(self.config.samples.count or self.config.samples.prompts)

    def weights(self, *names: str) -> int:
        """Of these parts."""
        own = {name: self.bytes * _size(module) for name, module in self.modules.items()} | {VAE: self.vae_bytes * _size(self.vae)}
        return sum(own[name] for name in names)

    @property
    def busy(self) -> list[str]:
        """The parts that the steps need: where one text encoder learns, all are asked."""
        return list(self.modules) if self.config.trains_text else [UNET]

    @property
    def idle(self) -> list[str]:
        """The text encoders that they do without."""
        return [name for name in self.modules if name not in self.busy]

    @property
    def every(self) -> int:
        """All weights."""
        return self.weights(*self.modules, VAE)

    @property
    def staying(self) -> int:
        """Weights in the device's memory during the steps. Of a base that is split the whole one stays too, where it is drawn with and
        has nowhere else to wait."""
        shares = self.shares + self.gathered
        if self.drawn and not self.apart:
            return self.every + shares
        return self.weights(*(name for name in self.busy if name not in self.cut)) + shares

    @property
    def cut(self) -> list[str]:
        """The parts that are split."""
        return [name for name in self.modules if name == UNET or name in self.config.learning] if self.how else []

    @property
    def shares(self) -> int:
        """One process's, of what is split."""
        return sum(self.weights(name) for name in self.cut) // self.processes

    @property
    def gathered(self) -> int:
        """What is there of other processes' shares at the worst moment."""
        return sum(self.bytes * sharding.gathered(self.modules[name], self.how) for name in self.cut if self.how)

    def footprint(self) -> Footprint:
        config = self.config
        images = config.batch_size + config.priors_per_batch
        chosen = set(layers(self.modules, config))
        numbers = activations.with_gradient(self.unet, *self.size, chosen, config.gradient_checkpointing, self.joined)
        numbers += activations.text({name: self.modules[name] for name in config.learning if name != UNET})
        adapter, scratch = trained(config, self.modules), self.basic + self.scratch(images, *self.size, self.times)
        others = {"encoding the pictures": self.encoding()}
        if self.cut:
            others["splitting the base"] = (self.weights(*self.busy) if self.apart else self.every) + self.shares
        if config.prior.on:
            others["drawing the base's own pictures"] = self.drawing(config.prior.images, config.prior.guidance)
        if self.drawn:
            count = len(config.samples.prompts) or config.samples.count
            others["drawing samples"] = self.drawing(count, config.samples.guidance) + adapter + self.shares
        if config.validation.on:
            others["validating"] = self.staying + adapter + self.forward(min(ROWS, config.validation.timesteps), *self.size)
        return Footprint(
            self.staying, adapter, round(images * numbers * self.bytes), scratch, images, others, self.processes if self.cut else 1
        )

    @property
    def times(self) -> int:
        """Of the widest input, what the convolutions of a step take."""
        if not self.joined:
            return SCRATCH
        return TWICE if self.config.gradient_checkpointing else JOINED

    def scratch(self, rows: int, height: int, width: int, times: int = SCRATCH) -> int:
        """What convolutions of the U-Net take beside their results."""
        return times * activations.widest(self.unet, height, width) * rows * self.bytes if self.where.type == "cpu" else 0

    @property
    def basic(self) -> int:
        return BASIC if self.where.type == "cpu" else 0

    def encoding(self) -> int:
        """With all parts where there is one memory; else the VAE, and the text encoders, have their turn without the U-Net."""
        height, width = (self.factor * side for side in self.size)
        work = round(activations.encoding(self.vae, height, width, self.config.vae_tiling) * self.vae_bytes) + self.basic
        if not self.apart:
            return self.every + work
        learning = [name for name in self.busy if name != UNET]
        return self.weights(*learning) + max(self.weights(VAE) + work, self.weights(*self.idle))

    def drawing(self, pictures: int, guidance: float) -> int:
        """Pictures, beside an adapter: what the steps do without comes for its turn, if it waits elsewhere."""
        denoising, decoding = self.denoising(pictures, guidance), self.decoding()
        if not self.apart:
            return self.every + max(denoising, decoding)
        return self.weights(*self.busy) + max(denoising, self.weights(VAE) + decoding, self.weights(*self.idle))

    def denoising(self, pictures: int, guidance: float) -> int:
        """So many pictures of the base's own size, as many at a time as are drawn together."""
        side = self.unet.config.sample_size
        rows = max(1, min(pictures, TOGETHER // side**2)) * (2 if guidance > 1 else 1)
        return self.forward(rows, side, side)

    def forward(self, rows: int, height: int, width: int) -> int:
        """One call of the U-Net without a gradient."""
        own = round(rows * activations.without_gradient(self.unet, height, width) * self.bytes)
        return own + self.scratch(rows, height, width, FORWARD)

    def decoding(self) -> int:
        side = self.unet.config.sample_size * self.factor
        return round(activations.decoding(self.vae, side, side, self.config.vae_tiling) * self.vae_bytes) + self.basic


def trained(config: TrainConfig, modules: Mapping[str, nn.Module]) -> int:
    """Bytes of what is trained: itself, its gradient, what the optimiser keeps of it, and its average where one is asked for."""
    weights, own = named_layers(modules), config.optimizer
    state, each = optimizers.KINDS[own.name].state, NUMBER * (3 if config.ema.on else 2)
    result = 0
    for name, layer in layers(modules, config).items():
        weight: Any = weights[name].weight
        out, *inner = weight.shape
        for shape in ((layer.rank, *inner), (out, layer.rank, *(1 for _ in inner[1:]))):  # A and B
            result += each * torch.Size(shape).numel() + state(shape, own.arguments)
    return result


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def lines(found: Footprint) -> list[str]:
    """In words."""
    split = f" of a base in {found.split} shares" if found.split > 1 else ""
    parts = f"weights {gib(found.weights)}{split}, adapter and optimiser {gib(found.adapter)}, activations {gib(found.activations)}"
    parts += f", the CPU's scratch {gib(found.scratch)}" if found.scratch else ""
    more = f"about {gib(found.total)} while {found.worst}; a step " if found.worst else ""
    return [f"{'memory':8} {more}about {gib(found.step)} ({parts})"]


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.0f} MiB"
