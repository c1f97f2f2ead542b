"""α of files whose tensors hold none: PEFT's LoraConfig, in the header (diffusers since 0.34) or in adapter_config.json beside the file.

Without either α = r. Rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732, eq. 7) scales by α/√r, which is α√r in ours.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from sdlora.errors import SdloraError
from sdlora.layers import LEVEL

CONFIG = "lora_adapter_metadata"  # the header's key; its JSON has the component before each key: "unet.lora_alpha"
SPECIAL = re.compile(r"[\\^$*+?{}\[\]|()]")  # what makes a pattern more than a name

Lookup = Callable[[str], float | None]


def reader(header: Mapping[str, str]) -> Callable[[str, int], float | None]:
    """A function (canonical name, rank) -> α as the header has it, or None where it says nothing of the layer's component."""
    config = _config(header)
    if not config:
        return lambda name, rank: None
    patterns: dict[str, Lookup] = {}

    def alpha(name: str, rank: int) -> float | None:
        component, _, path = name.partition(".")
        own = "" if "lora_alpha" in config else component + "."  # adapter_config.json has no components
        if component not in patterns:
            patterns[component] = _lookup(config.get(f"{own}alpha_pattern") or {})
        found = patterns[component](path)
        if found is None:
            found = _number(f"{own}lora_alpha", config.get(f"{own}lora_alpha"))
        if found is None:
            return None
        return found * math.sqrt(rank) if config.get(f"{own}use_rslora") else found

    return alpha


def _config(header: Mapping[str, str]) -> dict[str, Any]:
    try:
        config = json.loads(header.get(CONFIG, "{}"))
    except ValueError as error:
        raise SdloraError(f"the header's {CONFIG} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise SdloraError(f"the header's {CONFIG} is not a JSON object")
    return config


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SdloraError(f"{name} in the header's {CONFIG} is {value!r}, which is no number")
    return float(value)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        raise SdloraError(f"alpha_pattern in the header's {CONFIG} has {pattern!r}, which is no pattern: {error}") from error


def _lookup(patterns: Any) -> Lookup:
    """PEFT's rule, the first pattern that matches the end of the name (get_pattern_key): plain names by a table, the rest in turn."""
    if not isinstance(patterns, Mapping):
        raise SdloraError(f"alpha_pattern in the header's {CONFIG} is no table but {patterns!r}")
    values = [_number(f"alpha_pattern of {name}", value) for name, value in patterns.items()]
    order = list(patterns)
    plain = {pattern.removeprefix(LEVEL): i for i, pattern in reversed(list(enumerate(order))) if not SPECIAL.search(pattern)}
    other = [(i, _compiled(pattern)) for i, pattern in enumerate(order) if SPECIAL.search(pattern)]

    def find(path: str) -> float | None:
        short = path.removeprefix(LEVEL)
        parts = short.split(".")
        hits = [plain[end] for k in range(len(parts)) if (end := ".".join(parts[k:])) in plain]
        hits += [i for i, pattern in other if pattern.match(path) or pattern.match(short)]
        return values[min(hits)] if hits else None

    return find
