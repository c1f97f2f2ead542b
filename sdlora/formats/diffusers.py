"""diffusers' keys before it took over PEFT's: unet.….to_q.lora.down.weight, text_encoder.….lora_linear_layer.down.weight (0.17 on),
and until then unet.….attn1.processor.to_q_lora.down.weight. Only the newer spelling is written.

Sources: diffusers/utils/state_dict_utils.py, UNET_TO_DIFFUSERS, DIFFUSERS_TO_PEFT and DIFFUSERS_OLD_TO_PEFT.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sdlora.formats import names, peft
from sdlora.layers import TEXT

OLD = re.compile(r"(.+?)(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up)\.weight")
NEW = re.compile(r"(.+)\.(?:lora|lora_linear_layer)\.(down|up)\.weight")


def split(key: str) -> tuple[str, str, str] | None:
    """(canonical layer name, field, dialect) of one key, or None if it is none of diffusers'."""
    if old := OLD.fullmatch(key):
        path, which, field = old.groups()
        text = path.endswith(".self_attn")
        name = names.located(f"{path}.{which}_proj" if text else f"{path}.to_{which}{'.0' if which == 'out' else ''}")
        return name, field, "diffusers-old"
    if new := NEW.fullmatch(key):
        path, field = new.groups()
        return names.located(path.replace(".processor.", ".")), field, "diffusers"
    return None


def encode(layers: Mapping[str, Any], family: str | None = None) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, update in layers.items():
        middle = "lora" if not name.startswith(TEXT) or name.endswith("text_projection") else "lora_linear_layer"
        result |= {f"{name}.{middle}.down.weight": update.a, f"{name}.{middle}.up.weight": update.b}
    return result


header = peft.header  # diffusers reads α from there for its own keys too
