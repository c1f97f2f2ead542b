"""The autoencoder's layers by LDM's names (AutoencoderKL of github.com/CompVis/stable-diffusion) and by diffusers' older ones."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sdlora.checkpoints.links import How, Link

PREFIX = "first_stage_model."
MIDDLE = {"resnets.0": "block_1", "resnets.1": "block_2", "attentions.0": "attn_1"}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OLDER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # diffusers before 0.14, and the files of that time
PLACE = re.compile(r"(encoder|decoder)\.(down|up|mid)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def name(path: str, config: Mapping[str, Any]) -> str:
    """LDM's name of the parameter that diffusers calls `path` in an autoencoder of this `config`."""
    match = PLACE.fullmatch(path)
    if not match:
        return path.replace("conv_norm_out", "norm_out")
    half, side, stage, kind, index, rest = match.groups()
    rest = rest.replace("conv_shortcut", "nin_shortcut")
    if kind == "attentions":
        rest = next(theirs + rest[len(ours) :] for ours, theirs in ATTENTION.items() if rest.startswith(ours + "."))
    if side == "mid":
        return f"{half}.mid.{MIDDLE[f'{kind}.{index}']}.{rest}"
    if side == "up":
        stage = str(len(config["block_out_channels"]) - 1 - int(stage))  # LDM counts from the finest stage on both sides
    layer = {"resnets": f"block.{index}", "downsamplers": "downsample", "upsamplers": "upsample"}[kind]
    return f"{half}.{side}.{stage}.{layer}.{rest}"


def links(names: Iterable[str], config: Mapping[str, Any], prefix: str = PREFIX) -> list[Link]:
    """The file's tensor for each of the autoencoder's parameters `names`; its attention is 1 × 1 convolutions there."""
    return [Link(path, prefix + name(path, config), How.POINTWISE if pointwise(path) else How.SAME) for path in names]


def pointwise(path: str) -> bool:
    return ".attentions." in path and "group_norm" not in path and path.endswith(".weight")


def older(path: str) -> str:
    """The name that diffusers' folders of before 2023 have for the parameter `path`."""
    if ".attentions." in path:
        for new, old in OLDER.items():
            path = path.replace(f".{new}.", f".{old}.")
    return path
