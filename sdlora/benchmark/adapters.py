"""The adapter under test: a file, or `random:rank=16`, made on the spot, so that the benchmark runs without a training."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sdlora import files
from sdlora.adapter import Adapter
from sdlora.apply import targets
from sdlora.errors import SdloraError, nearest
from sdlora.kinds.lora import Lora
from sdlora.layers import named_layers
from sdlora.models import Components

SHARE = 0.1  # ‖ΔW‖ / ‖W‖ of a random adapter, about that of a trained one


@dataclass(frozen=True)
class RandomAdapter:
    rank: int = 16
    seed: int = 0
    targets: str = "attention"  # several: attention+feed_forward


def parse(text: str) -> RandomAdapter | Path:
    """`random`, `random:rank=16,seed=1,targets=attention`, or else a path."""
    kind, _, settings = text.partition(":")
    if kind != "random":
        return Path(text)
    kinds: dict[str, Callable[[str], Any]] = {"rank": int, "seed": int, "targets": str}
    found: dict[str, Any] = {}
    for part in filter(None, settings.split(",")):
        key, _, value = part.partition("=")
        if key not in kinds:
            raise SdloraError(f"adapter = {text!r}: unknown setting {key!r} of a random adapter{nearest(key, kinds)}")
        try:
            found[key] = kinds[key](value)
        except ValueError:
            raise SdloraError(f"adapter = {text!r}: {key} is {value!r}; expected a whole number, as in random:rank=16") from None
    chosen = RandomAdapter(**found)
    if chosen.rank < 1:
        raise SdloraError(f"adapter = {text!r}: the rank is {chosen.rank}; at least 1 is needed")
    return chosen


def obtain(text: str, components: Components) -> Adapter:
    """The adapter that `text` names, ready for `components`."""
    chosen = parse(text)
    return files.load(chosen, components.modules) if isinstance(chosen, Path) else draw(chosen, components)


def draw(chosen: RandomAdapter, components: Components) -> Adapter:
    """A and B Gaussian, B scaled so that every layer changes by the same share of its norm. A function of `chosen.seed`."""
    generator = torch.Generator().manual_seed(chosen.seed)
    names, layers = targets.select(components.modules, chosen.targets.split("+")), named_layers(components.modules)
    return Adapter({name: pair(layers[name], chosen.rank, generator) for name in names}, {"ss_training_comment": "random, untrained"})


def companions(adapter: Adapter, components: Components, count: int, seed: int = 1) -> tuple[Adapter, ...]:
    """`adapter` and random ones on the same layers with the same ranks, `count` in all: what several such adapters cost."""
    layers = named_layers(components.modules)
    result = [adapter]
    for i in range(1, count):
        generator = torch.Generator().manual_seed(1000 * seed + i)
        result.append(Adapter({name: pair(layers[name], update.rank, generator) for name, update in adapter.layers.items()}))
    return tuple(result)


def pair(layer: torch.nn.Module, rank: int, generator: torch.Generator) -> Lora:
    assert isinstance(layer.weight, torch.Tensor)
    weight = layer.weight.detach().float().cpu()
    out, inside = weight.shape[0], weight.shape[1]
    a = torch.randn((rank, inside, *weight.shape[2:]), generator=generator)
    b = torch.randn((out, rank, *(1 for _ in weight.shape[2:])), generator=generator)
    update = Lora(a, b, float(rank))
    return replace(update, b=b * (SHARE * weight.norm() / update.delta(weight).norm()))
