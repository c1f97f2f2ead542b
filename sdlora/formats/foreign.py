"""Kinds of adapters that are no plain LoRA, known by how their keys end, so that a file is refused by its kind's name."""

import re
from collections.abc import Iterable

from sdlora.errors import SdloraError

KINDS = {  # LyCORIS: the weight_list of its modules; PEFT: the prefix of its tuners
    r"dora_scale|lora_magnitude_vector|^lora_.*\.magnitude$": "DoRA",  # the last is ai-toolkit's
    r"hada_[wt]\d": "LoHa",
    r"lokr_[wt]\d": "LoKr",
    r"\boft_(blocks|diag|R)\b|\bboft_": "OFT or BOFT",
    r"\.([ab][12]|bm)\.weight$": "GLoRA",
    r"\.on_input$|\bia3_l": "(IA)³",
    r"\.diff(_b)?$": "full difference",
    r"\.[wb]_norm$": "trained norm",
    r"vera_lambda": "VeRA",
    r"lora_E\b|\branknum": "AdaLoRA",
    r"lora_(A|B|down|up)(\.[^.]+)?\.bias$": "LoRA with biases",
    r"lora_embedding_[AB]": "LoRA of an embedding",
    r"lora_controlnet": "Control-LoRA",
    r"^(unet|text_encoder):\d+:(up|down)$": "cloneofsimo's LoRA without layer names",
}


def kind_of(key: str) -> str | None:
    """The name of the kind that the tensor belongs to, None where it is not known."""
    return next((kind for pattern, kind in KINDS.items() if re.search(pattern, key)), None)


def refuse(keys: Iterable[str]) -> None:
    """SdloraError, naming kind, number and an example, if one of `keys` belongs to a kind that is not read."""
    found: dict[str, list[str]] = {}
    for key in keys:
        kind = kind_of(key)
        if kind:
            found.setdefault(kind, []).append(key)
    if found:
        what = "; ".join(f"{kind}: {len(own)} tensors such as {own[0]}" for kind, own in found.items())
        raise SdloraError(f"it is no plain LoRA but has tensors of {what}. This version of sdlora reads LoRA and LoCon only")
