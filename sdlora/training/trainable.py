"""What is trained: which layers, each with rank, α and rate; as fresh updates on the base and as the optimizer's groups."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sdlora import apply
from sdlora.apply import patterns
from sdlora.errors import SdloraError
from sdlora.models import Components
from sdlora.training import draws
from sdlora.training.config import TrainConfig


@dataclass(frozen=True)
class Layer:
    target: str
    rank: int
    alpha: float  # as it is stored: ΔW = (α / r) B A, so with rank-stabilised scaling α√r
    factor: float  # of its component's learning rate


def layers(modules: Mapping[str, nn.Module], config: TrainConfig) -> dict[str, Layer]:
    """Canonical name -> what the layer gets, in the model's order.

    A rank of [ranks] keeps the scale α / r of the layer's target, unless [alphas] says otherwise. Rank-stabilised scaling α/√r
    (Kalajdzievski 2023, arXiv:2312.03732, eq. 7) is α√r in the file, from which every program computes the same ΔW.
    """
    sdxl = "text_encoder_2" in modules
    for pattern in (*config.include, *config.exclude, *config.ranks, *config.alphas, *config.rates):
        if pattern in patterns.NAMED and not sdxl:
            blocks = " and ".join(patterns.NAMED[pattern])
            raise SdloraError(f"{pattern} is {blocks} of SDXL, and this base is another family; name the blocks you mean")
    parts, targets = config.parts, apply.by_target(modules, list(config.parts))
    names = patterns.selected(targets, config.include, config.exclude)
    ranks = patterns.assigned(names, config.ranks, "ranks")
    trained = [name for name in names if ranks.get(name, 1) > 0]
    alphas, factors = patterns.assigned(trained, config.alphas, "alphas"), patterns.assigned(trained, config.rates, "rates")
    result = {}
    for name in trained:
        part = parts[targets[name]]
        rank = ranks.get(name, part.rank)
        alpha = alphas.get(name, rank * (1.0 if part.alpha is None else part.alpha / part.rank))
        result[name] = Layer(targets[name], rank, alpha * math.sqrt(rank) if config.rslora else alpha, factors.get(name, 1.0))
    for target in parts:
        if all(layer.target != target for layer in result.values()):
            raise SdloraError(f"include, exclude and ranks leave no layer of the target {target}; leave it out of targets")
    return result


def trainable(components: Components, config: TrainConfig) -> tuple[list[nn.Parameter], list[dict[str, Any]]]:
    """Put fresh updates onto the chosen layers: all parameters, and the optimizer's groups, one for each learning rate.

    B learns `lora_plus` times as fast as A.  LoRA+: Hayou et al. 2024, arXiv:2402.12354, sec. 4.
    """
    chosen = layers(components.modules, config)
    ranks, alphas = {name: layer.rank for name, layer in chosen.items()}, {name: layer.alpha for name, layer in chosen.items()}
    source = draws.generator(config.seed, "first weights")
    parameters: list[nn.Parameter] = []
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for component, module in components.modules.items():
        own = [name for name in chosen if name.startswith(component + ".")]
        if own:
            parameters += apply.inject({component: module}, own, ranks, alphas, source)
    for name, update in apply.carriers(components.modules).items():
        component = name.partition(".")[0]
        for field, parameter in update.named_parameters():
            rate = config.rate(component) * chosen[name].factor * (config.lora_plus if field == "b" else 1.0)
            groups.setdefault((component, rate), []).append(parameter)
    return parameters, [{"params": own, "lr": rate} for (_, rate), own in groups.items()]
