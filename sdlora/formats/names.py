"""Layer names as files spell them: a component's many prefixes, dots turned into underscores, LDM's blocks for diffusers' blocks."""

import re

from sdlora.layers import canonical

COMPONENTS = {  # the first words of a dotted name
    "unet": "unet",
    "lora_unet": "unet",
    "diffusion_model": "unet",
    "text_encoder": "text_encoder",
    "clip_l": "text_encoder",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "clip_g": "text_encoder_2",
    "lora_te2": "text_encoder_2",
}
WRAPPER = "base_model.model."  # PEFT's level around the model
ENCODERS, TRANSFORMER = "text_encoders.", "transformer."  # ComfyUI's levels above and below clip_l and clip_g
LDM_HEADS = ("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out")
UNET_HEADS = ("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "time_embedding", "add_embedding", *LDM_HEADS)
TEXT_HEADS = ("text_model", "text_projection", "encoder")
WORDS = (  # with underscores of their own; all other underscores of a flat name were dots
    *(head for head in UNET_HEADS if "_" in head),
    *("transformer_blocks", "to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out", "time_emb_proj", "conv_shortcut"),
    *("linear_1", "linear_2", "in_layers", "out_layers", "emb_layers", "skip_connection"),
    *("text_model", "text_projection", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
)
_WORD = re.compile(rf"(?<![^_])(?:{'|'.join(sorted(WORDS, key=len, reverse=True))})(?![^_])|[^_]+")
RESNET = {"in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}
OUTSIDE = {  # of the numbered blocks
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_LDM_RESNET = {ours: theirs for theirs, ours in RESNET.items()}
_LDM_OUTSIDE = {ours: theirs for theirs, ours in OUTSIDE.items()}
_LDM = re.compile(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)|(middle)_block\.([012])\.(.+)")
_DIFFUSERS = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)|mid_block\.(\w+)\.(\d)\.(.+)")


def flat(path: str) -> str:
    return path.replace(".", "_")


def dotted(path: str) -> str:
    """The inverse of `flat` for the layers of diffusers' and LDM's U-Nets and of CLIP. Other paths come back as they are."""
    result = ".".join(_WORD.findall(path))
    return result if _head(result) in UNET_HEADS + TEXT_HEADS else path


def is_ldm(path: str) -> bool:
    """Whether the dotted path in a U-Net is spelled with LDM's blocks."""
    return _head(path) in LDM_HEADS


def from_ldm(path: str) -> str:
    """input_blocks.4.1.proj_in -> down_blocks.1.attentions.0.proj_in; the same for SD 1.x, 2.x and XL, two layers to a block.

    LDM counts the blocks through, diffusers by resolution: LDM's openaimodel.UNetModel. Other paths come back as they are.
    """
    if path in OUTSIDE:
        return OUTSIDE[path]
    found = _LDM.fullmatch(path)
    if not found:
        return path
    side, number, place, rest, middle, third, within = found.groups()
    if middle:
        return f"mid_block.attentions.0.{within}" if third == "1" else f"mid_block.resnets.{int(third) // 2}.{RESNET.get(within, within)}"
    block, layer = divmod(int(number) - (side == "input"), 3)
    name = "down_blocks" if side == "input" else "up_blocks"
    if rest in ("op", "conv"):
        return f"{name}.{block}.{'down' if rest == 'op' else 'up'}samplers.0.conv"
    return f"{name}.{block}.attentions.{layer}.{rest}" if place == "1" else f"{name}.{block}.resnets.{layer}.{RESNET.get(rest, rest)}"


def to_ldm(path: str) -> str:
    """The inverse of `from_ldm` for SDXL's U-Net. (In SD 1.x and 2.x the first upsampler is output_blocks.2.1.)"""
    if path in _LDM_OUTSIDE:
        return _LDM_OUTSIDE[path]
    found = _DIFFUSERS.fullmatch(path)
    if not found:
        return path
    side, block, what, layer, rest, middle, index, within = found.groups()
    if middle:
        return f"middle_block.1.{within}" if middle == "attentions" else f"middle_block.{2 * int(index)}.{_LDM_RESNET.get(within, within)}"
    if what == "downsamplers":
        return f"input_blocks.{3 * int(block) + 3}.0.op"
    if what == "upsamplers":
        return f"output_blocks.{3 * int(block) + 2}.2.conv"
    place = f"{'input' if side == 'down' else 'output'}_blocks.{3 * int(block) + int(layer) + (side == 'down')}"
    return f"{place}.1.{rest}" if what == "attentions" else f"{place}.0.{_LDM_RESNET.get(rest, rest)}"


def located(path: str) -> str:
    """The canonical name of the layer that a file calls by the dotted `path`: unet.…, clip_l.…, base_model.model.…, or bare.

    A path that does not say where it is comes back as it is.
    """
    component, rest = _component(path.removeprefix(WRAPPER).removeprefix(ENCODERS))
    if component is None:
        component = "unet" if _head(rest) in UNET_HEADS else "text_encoder" if _head(rest) in TEXT_HEADS else None
    if component is None:
        return path
    rest = rest.removeprefix(WRAPPER).removeprefix(TRANSFORMER)
    return canonical(component, from_ldm(rest) if component == "unet" else rest)


def _component(path: str) -> tuple[str | None, str]:
    head, _, rest = path.partition(".")
    return (COMPONENTS[head], rest) if head in COMPONENTS else (None, path)


def _head(path: str) -> str:
    return path.partition(".")[0]
