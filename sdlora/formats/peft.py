"""PEFT's keys, which diffusers writes today: unet.down_blocks.0.….lora_A.weight, .lora_B.weight.

PEFT's own folders have base_model.model.….lora_A.weight, its state dicts the adapter's name too (….lora_A.default.weight).
The tensors hold no α: see `alphas`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from sdlora.formats import names
from sdlora.formats.alphas import CONFIG
from sdlora.layers import LEVEL, TEXT

KEY = re.compile(r"(.+)\.lora_(A|B)(?:\.[^.]+)?\.weight")
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


def split(key: str) -> tuple[str, str, str] | None:
    """(canonical layer name, field, dialect) of one key, or None if it is none of PEFT's."""
    found = KEY.fullmatch(key)
    return (names.located(found[1].replace(".processor.", ".")), "down" if found[2] == "A" else "up", "peft") if found else None


def encode(layers: Mapping[str, Any], family: str | None = None) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, update in layers.items():
        result |= {name + DOWN: update.a, name + UP: update.b}
    return result


def header(layers: Mapping[str, Any]) -> dict[str, str]:
    """PEFT's LoraConfig, one per component, its keys prefixed by the component's name; what differs from the most common rank
    and α stands in its patterns."""
    config: dict[str, Any] = {}
    for component in sorted({name.partition(".")[0] for name in layers}):
        own = {path(name): update for name, update in layers.items() if name.partition(".")[0] == component}
        ranks, alphas = ({path: getattr(u, which) for path, u in own.items()} for which in ("rank", "alpha"))
        rank, alpha = _most_common(ranks.values()), _most_common(alphas.values())
        settings = {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {path: r for path, r in ranks.items() if r != rank},
            "alpha_pattern": {path: a for path, a in alphas.items() if a != alpha},
            "target_modules": sorted(own),
        }
        config |= {f"{component}.{key}": value for key, value in settings.items()}
    return {CONFIG: json.dumps(config, indent=2, sort_keys=True)}


def path(name: str) -> str:
    """Within the component, without the level that transformers 5 dropped: PEFT matches the end of a module's name."""
    component, _, rest = name.partition(".")
    return rest.removeprefix(LEVEL) if component.startswith(TEXT) else rest


def _most_common(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]
