"""The U-Net's layers by LDM's names: blocks counted through one list, where diffusers counts stages and layers.

LDM: openaimodel.UNetModel of github.com/CompVis/stable-diffusion; sgm's has the same names.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sdlora.checkpoints.links import Link

PREFIX = "model.diffusion_model."
EMA = "model_ema."
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
SLOT = {"resnets": 0, "attentions": 1}
MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
PLACE = re.compile(r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def name(path: str, config: Mapping[str, Any]) -> str:
    """LDM's name of the layer or parameter that diffusers calls `path` in a U-Net of this `config`."""
    for ours, theirs in ENDS.items():
        if path == ours or path.startswith(ours + "."):
            return theirs + path[len(ours) :]
    match = PLACE.fullmatch(path)
    if not match:
        raise KeyError(path)
    side, stage, kind, index, rest = match.groups()
    if kind == "resnets":
        head, dot, tail = rest.partition(".")
        rest = RESNET[head] + dot + tail
    if side == "mid_block":
        return f"middle_block.{MIDDLE[f'{kind}.{index}']}.{rest}"
    layers = config["layers_per_block"]
    first = (layers + 1) * int(stage)  # down: layers and a sampler; up: one layer more, each with the skip of one of those
    match side, kind:
        case "down_blocks", "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.op{rest.removeprefix('conv')}"
        case "up_blocks", "upsamplers":
            attends = "Attn" in config["up_block_types"][int(stage)]
            return f"output_blocks.{first + layers}.{2 if attends else 1}.{rest}"
        case "down_blocks", _:
            return f"input_blocks.{first + int(index) + 1}.{SLOT[kind]}.{rest}"
    return f"output_blocks.{first + int(index)}.{SLOT[kind]}.{rest}"


def links(names: Iterable[str], config: Mapping[str, Any], prefix: str = PREFIX) -> list[Link]:
    """The file's tensor for each of the U-Net's parameters `names`."""
    return [Link(path, prefix + name(path, config)) for path in names]


def averaged(theirs: str) -> str:
    """The key under which a file keeps the moving average (EMA) of the U-Net's tensor `theirs`: without any dot."""
    return EMA + theirs.removeprefix("model.").replace(".", "")
