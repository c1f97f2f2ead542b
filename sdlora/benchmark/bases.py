"""The base under test: a name, file or folder; or `random:sd1`, a base of true size with random weights, made on the spot.

What an adapter costs does not depend on the weights' values, so that nobody needs the weights to measure it.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdlora import generation, hardware, models
from sdlora.checkpoints import build, configs, tokenizer
from sdlora.checkpoints.opened import kinds, skeletons
from sdlora.errors import SdloraError, nearest
from sdlora.families import EPSILON, FAMILIES
from sdlora.models import Components
from sdlora.schedule import alphas_bar

RANDOM = "random:"


def load(base: str, device: str, precision: str, vae: Path | None = None) -> Components:
    """The components of `base`; `device` and `precision` in the words of the command line."""
    if base.startswith(RANDOM):
        if vae is not None:
            raise SdloraError(f"base = {base!r} has a random VAE of its own; leave vae = {vae} out")
        return made(base.removeprefix(RANDOM), hardware.device(device), hardware.dtype(precision))
    return generation.load(base, device, precision, vae=vae)


def made(name: str, device: torch.device, dtype: torch.dtype, seed: int = 0, packaged: dict[str, Any] | None = None) -> Components:
    """A base of the family `name` (a key of FAMILIES) with random weights, a function of `seed`; SdloraError for another name.

    `packaged` takes the place of the family's own configurations (`checkpoints.configs.packaged`).
    """
    if name not in FAMILIES:
        raise SdloraError(f"base = '{RANDOM}{name}': unknown family {name!r}{nearest(name, FAMILIES)}")
    family, config = FAMILIES[name], packaged or configs.packaged(name)
    generator = torch.Generator(device).manual_seed(seed)
    parts = skeletons(family, {part: config[part] for part in kinds(family)})
    precise = models.vae_dtype(dtype, family.pooled and parts["vae"].config.force_upcast)
    for part, module in parts.items():
        filled(module, generator, device, precise if part == "vae" else dtype)
    schedule = config["scheduler"]
    bar = alphas_bar(schedule["beta_start"], schedule["beta_end"], schedule["beta_schedule"], schedule["num_train_timesteps"])
    words = tuple(tokenizer.tokenizer(pad) for pad in config["pads"])
    texts = tuple(parts[part] for part, _ in family.text_encoders)
    return Components(f"{RANDOM}{name}", name, words, texts, parts["unet"], parts["vae"], bar, EPSILON, f"{RANDOM}{seed}", family.pooled)


def filled(module: nn.Module, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
    """Weights onto a network on the meta device: products keep the scale of what they are given, norms are the identity's."""
    state = {name: drawn(parameter, name, generator, device, dtype) for name, parameter in module.named_parameters()}
    build.assign(module, state, device)


def drawn(parameter: Tensor, name: str, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensor:
    result = torch.empty(parameter.shape, device=device, dtype=dtype)
    if parameter.dim() < 2:
        return result.fill_(1.0 if name.endswith("weight") else 0.0)
    side = math.sqrt(3 / math.prod(parameter.shape[1:]))  # uniform in ± side has variance 1 / fan-in
    return result.uniform_(-side, side, generator=generator)
