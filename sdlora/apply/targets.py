"""Which layers get an update: named groups, one row of a table each, and each with its own rank and α."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from sdlora.errors import SdloraError, nearest
from sdlora.layers import named_layers

TARGETS = {
    "attention": r"unet\..*\.attn\d+\.to_(q|k|v|out\.0)",
    "feed_forward": r"unet\..*\.ff\.net\.(0\.proj|2)",
    "projections": r"unet\..*\.proj_(in|out)",
    "convolutions": r"unet\..*\.(conv1|conv2|(down|up)samplers\.\d+\.conv)",  # 3 × 3
    "shortcuts": r"unet\..*\.conv_shortcut",  # 1 × 1
    "time_projections": r"unet\..*\.time_emb_proj",
    "text_attention": r"text_encoder\..*\.self_attn\.(q|k|v|out)_proj",
    "text_mlp": r"text_encoder\..*\.mlp\.fc[12]",
    "text_attention_2": r"text_encoder_2\..*\.self_attn\.(q|k|v|out)_proj",
    "text_mlp_2": r"text_encoder_2\..*\.mlp\.fc[12]",
}
DEFAULT = ("attention",)


@dataclass(frozen=True)
class Part:
    """What one target gets: rank r ≥ 1, α (None: as the rank), or nothing."""

    rank: int
    alpha: float | None = None
    on: bool = True


def select(modules: Mapping[str, nn.Module], targets: Iterable[str] = DEFAULT) -> list[str]:
    """The names of the layers that `targets` (keys of TARGETS) stand for, in the model's order."""
    return list(by_target(modules, [targets] if isinstance(targets, str) else list(targets)))


def plan(modules: Mapping[str, nn.Module], parts: Mapping[str, Part]) -> tuple[dict[str, int], dict[str, float]]:
    """Layer name -> rank and layer name -> α, as `inject` takes them, for {target: Part}; in the model's order."""
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, target in by_target(modules, [target for target, part in parts.items() if part.on]).items():
        part = parts[target]
        ranks[name], alphas[name] = part.rank, float(part.rank if part.alpha is None else part.alpha)
    return ranks, alphas


def by_target(modules: Mapping[str, nn.Module], targets: list[str]) -> dict[str, str]:
    """Layer name -> target, in the model's order. No layer belongs to two."""
    for target in targets:
        if target not in TARGETS:
            raise SdloraError(f"unknown target {target!r}{nearest(target, TARGETS)}")
    patterns = {target: re.compile(TARGETS[target]) for target in targets}
    result = {}
    for name in named_layers(modules):
        found = next((target for target, pattern in patterns.items() if pattern.fullmatch(name)), None)
        if found:
            result[name] = found
    for target in targets:
        if target not in result.values():
            raise SdloraError(f"the target {target} has no layer in {', '.join(modules)}; leave it out, or give the component that has it")
    return result
