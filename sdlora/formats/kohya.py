"""Kohya's keys, which A1111, Forge and ComfyUI read: lora_unet_down_blocks_0_….lora_down.weight, .lora_up.weight, .alpha.
LyCORIS's LoCon in Tucker form has .lora_mid.weight between the two, which is read and not written.

kohya's trainer, and with it the field, calls the blocks of SDXL's U-Net as LDM does (lora_unet_input_blocks_4_1_…) and its text
encoders lora_te1 and lora_te2; those of SD 1.x and 2.x as diffusers does, and their text encoder lora_te. All are read for all.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdlora.errors import SdloraError
from sdlora.formats import names
from sdlora.layers import canonical

DOWN, UP, MID, ALPHA = "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha"
FIELDS = {DOWN: "down", UP: "up", MID: "mid", ALPHA: "alpha"}
READ = {"lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}
WRITTEN = {"unet": "lora_unet", "text_encoder": "lora_te"}
WRITTEN_XL = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
LYCORIS = "lycoris_"  # LyCORIS's prefix outside kohya's trainer, whatever the component


def split(key: str) -> tuple[str, str, str] | None:
    """(canonical layer name, field, dialect) of one key, or None if it is none of kohya's."""
    layer, _, end = key.partition(".")
    if end not in FIELDS:
        return None
    first, second, _ = (*layer.split("_", 2), "", "")[:3]
    prefix = f"{first}_{second}"
    if prefix in READ:
        component, path = READ[prefix], names.dotted(layer.removeprefix(prefix + "_"))
    elif layer.startswith(LYCORIS):
        path = names.dotted(layer.removeprefix(LYCORIS))
        component = "text_encoder" if path.startswith(names.TEXT_HEADS) else "unet"
    else:
        return None
    if component == "unet" and names.is_ldm(path):
        return canonical(component, names.from_ldm(path)), FIELDS[end], "kohya-sgm"
    return canonical(component, path), FIELDS[end], "kohya"


def header(layers: Mapping[str, Any]) -> dict[str, str]:
    return {}  # the tensors say it all


def encode(layers: Mapping[str, Any], family: str | None = None) -> dict[str, Tensor]:
    """Keys -> tensors; SDXL's by LDM's block names. SdloraError for a layer that would not be read back by the same name."""
    result: dict[str, Tensor] = {}
    for name, update in layers.items():
        key = flat(name, family)
        read = split(f"{key}.{ALPHA}")
        if read is None or read[0] != name:
            raise SdloraError(f"the layer {name} cannot be written in kohya's format: {key} would be read as {read[0] if read else None}")
        result |= {f"{key}.{DOWN}": update.a, f"{key}.{UP}": update.b, f"{key}.{ALPHA}": exact(update.alpha)}
    return result


def flat(name: str, family: str | None = None) -> str:
    """unet.down_blocks.1.….to_out.0 -> lora_unet_down_blocks_1_…_to_out_0, or for SDXL lora_unet_input_blocks_4_…."""
    prefixes = WRITTEN_XL if family == "sdxl" else WRITTEN
    component, _, path = name.partition(".")
    if component not in prefixes:
        raise SdloraError(f"the layer {name} cannot be written in kohya's format, which knows the components {', '.join(prefixes)}")
    if family == "sdxl" and component == "unet":
        path = names.to_ldm(path)
    return f"{prefixes[component]}_{names.flat(path)}"


def exact(alpha: float) -> Tensor:
    """α as a scalar: fp32, the custom, unless only fp64 holds it exactly."""
    single = torch.tensor(alpha, dtype=torch.float32)
    return single if single.item() == alpha else torch.tensor(alpha, dtype=torch.float64)
