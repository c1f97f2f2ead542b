"""OneTrainer's and ComfyUI's dotted keys: unet.input_blocks.4.1.….lora_down.weight, clip_l.…, clip_g.…, with .alpha beside them.

OneTrainer (modules/util/convert/lora) writes its "omi" files so, and in its own folder lora_unet.down_blocks.….lora_down.weight.
"""

from sdlora.formats import names

FIELDS = {".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_mid.weight": "mid", ".alpha": "alpha"}


def split(key: str) -> tuple[str, str, str] | None:
    """(canonical layer name, field, dialect) of one key, or None if it is none of these. α alone is dotted in every dialect."""
    for end, field in FIELDS.items():
        if key.endswith(end):
            return names.located(key.removesuffix(end)), field, "onetrainer"
    return None
