"""diffusers' and PEFT's keys: unet.down_blocks.0.….lora_A.weight, .lora_B.weight.

The tensors hold no α. diffusers reads PEFT's LoraConfig from the header's `lora_adapter_metadata` (JSON; since 0.34) and
takes α = r without it; ranks and alphas that differ from the most common ones stand in its patterns.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from sdlora.errors import SdloraError
from sdlora.kinds.lora import Lora
from sdlora.layers import LEVEL, TEXT, canonical

DOWN, UP = ".lora_A.weight", ".lora_B.weight"
CONFIG = "lora_adapter_metadata"


def recognises(key: str) -> bool:
    return key.endswith((DOWN, UP))


def encode(layers: Mapping[str, Any]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, update in layers.items():
        result |= {name + DOWN: update.a, name + UP: update.b}
    return result


def header(layers: Mapping[str, Any]) -> dict[str, str]:
    """PEFT's LoraConfig, one per component, its keys prefixed by the component's name."""
    config: dict[str, Any] = {}
    for component in sorted({name.partition(".")[0] for name in layers}):
        own = {_path(name): update for name, update in layers.items() if name.partition(".")[0] == component}
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


def decode(tensors: Mapping[str, Tensor], names: Iterable[str], header: Mapping[str, str] | None = None) -> dict[str, Lora]:
    """Layer name -> update. The names have their dots, so that `names` is not needed; α = r where the header has none."""
    config = _config(header or {})
    keys = sorted({key.removesuffix(DOWN).removesuffix(UP) for key in tensors})
    result = {}
    for key in keys:
        a, b = tensors.get(key + DOWN), tensors.get(key + UP)
        if a is None and b is None:
            raise SdloraError(f"the tensor {key} is not part of a plain LoRA; this version of sdlora does not read its kind")
        if a is None or b is None:
            raise SdloraError(f"{key} lacks {DOWN if a is None else UP}; the file is not complete")
        component, _, path = key.removeprefix("base_model.model.").partition(".")
        name = canonical(component, path)
        result[name] = Lora(a, b, _alpha(config, name, a.shape[0]))
    return result


def _most_common(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _path(name: str) -> str:
    """Within the component, without the level that transformers 5 dropped: PEFT matches the end of a module's name."""
    component, _, path = name.partition(".")
    return path.removeprefix(LEVEL) if component.startswith(TEXT) else path


def _config(header: Mapping[str, str]) -> dict[str, Any]:
    try:
        config = json.loads(header.get(CONFIG, "{}"))
    except ValueError as error:
        raise SdloraError(f"the header's {CONFIG} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise SdloraError(f"the header's {CONFIG} is not a JSON object")
    return config


def _alpha(config: Mapping[str, Any], name: str, rank: int) -> float:
    """PEFT's rule: the first pattern that matches the end of the name, else the common α, else α = r."""
    component = name.partition(".")[0]
    for pattern, alpha in (config.get(f"{component}.alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", _path(name)):
            return float(alpha)
    return float(config.get(f"{component}.lora_alpha", rank))
