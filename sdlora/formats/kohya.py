"""Kohya's keys, which A1111, Forge and ComfyUI read: lora_unet_down_blocks_0_….lora_down.weight, .lora_up.weight, .alpha."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sdlora.errors import SdloraError
from sdlora.kinds.lora import Lora

PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
ALSO_READ = {"text_encoder": "lora_te1"}  # what diffusers' own converter writes for Stable Diffusion 1.x
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"


def recognises(key: str) -> bool:
    return key.startswith("lora_") and key.endswith((DOWN, UP))


def header(layers: Mapping[str, Any]) -> dict[str, str]:
    return {}  # the tensors say it all


def flat(name: str, prefixes: Mapping[str, str] = PREFIXES) -> str:
    """unet.down_blocks.1.….to_out.0 -> lora_unet_down_blocks_1_…_to_out_0."""
    component, _, path = name.partition(".")
    if component not in prefixes:
        raise SdloraError(f"the layer {name} cannot be written in kohya's format, which knows the components {', '.join(prefixes)}")
    return f"{prefixes[component]}_{path.replace('.', '_')}"


def encode(layers: Mapping[str, Any]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, update in layers.items():
        key = flat(name)
        result |= {key + DOWN: update.a, key + UP: update.b, key + ALPHA: exact(update.alpha)}
    return result


def exact(alpha: float) -> Tensor:
    """α as a scalar: fp32, the custom, unless only fp64 holds it exactly."""
    single = torch.tensor(alpha, dtype=torch.float32)
    return single if single.item() == alpha else torch.tensor(alpha, dtype=torch.float64)


def decode(tensors: Mapping[str, Tensor], names: Iterable[str], header: Mapping[str, str] | None = None) -> dict[str, Lora]:
    """Layer name -> update. A layer that is not among `names` keeps its flat name.

    Flat keys have lost their dots, so the model's names are needed to give them back. A missing or zero α means α = r (old
    files).
    """
    dotted = _dotted(names)
    result = {}
    for key in sorted({key.partition(".")[0] for key in tensors}):
        own = {suffix: tensors.get(key + suffix) for suffix in (DOWN, UP, ALPHA)}
        a, b, alpha = own[DOWN], own[UP], own[ALPHA]
        others = [k for k in tensors if k.partition(".")[0] == key and k[len(key) :] not in own]
        if others:
            raise SdloraError(f"the tensor {others[0]} is not part of a plain LoRA; this version of sdlora does not read its kind")
        if a is None or b is None:
            raise SdloraError(f"{key} lacks {DOWN if a is None else UP}; the file is not complete")
        result[dotted.get(key, key)] = Lora(a, b, (alpha.item() if alpha is not None else 0.0) or float(a.shape[0]))
    return result


def _dotted(names: Iterable[str]) -> dict[str, str]:
    result: dict[str, str] = {}
    for name in names:
        component = name.partition(".")[0]
        if component in PREFIXES:
            result[flat(name)] = name
        if component in ALSO_READ:
            result[flat(name, ALSO_READ)] = name
    return result
