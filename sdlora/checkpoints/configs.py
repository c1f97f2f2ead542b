"""The configurations of a family's components: those in the package, with the widths that a file's tensors have."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdlora.checkpoints import unet
from sdlora.families import V

FOLDER = Path(__file__).parents[1] / "assets" / "families"
HEAD = 64  # channels of an attention head, in every text encoder here and in the U-Nets of SD 2.x and XL
PLANES = 768  # pixels along a side that the v-predicting SD 2.x was trained on; its family's others, 512
EMBEDDED = 6  # numbers of size and place that SDXL's U-Net is told beside the pooled text

Shape = tuple[int, ...]
Shapes = Callable[[str], Shape]  # the shape of the single file's tensor of this name; KeyError where there is none


@lru_cache
def _read(family: str) -> str:
    return (FOLDER / f"{family}.json").read_text(encoding="utf-8")


def packaged(family: str, prediction: str | None = None) -> dict[str, Any]:
    """Component -> configuration, "scheduler" and "pads" (each tokenizer's padding) of a family, a key of FAMILIES."""
    configs = json.loads(_read(family))
    if prediction:
        configs["scheduler"]["prediction_type"] = prediction
    if family == "sd2" and prediction == V:
        configs["unet"]["sample_size"] = PLANES // 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
        configs["vae"]["sample_size"] = PLANES
    return configs


def fitted_unet(config: Mapping[str, Any], shape: Shapes, pooled: int | None) -> dict[str, Any]:
    """`config` with the widths of the file's tensors. `pooled`: the width of the pooled text embedding, for SDXL."""

    def ours(path: str) -> Shape:
        return shape(unet.PREFIX + unet.name(path, config))

    widths = [ours(f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(len(config["block_out_channels"]))]
    stage = next(i for i, kind in enumerate(config["down_block_types"]) if "Attn" in kind)
    context = ours(f"down_blocks.{stage}.attentions.0.transformer_blocks.0.attn2.to_k.weight")[1]
    found = {"in_channels": ours("conv_in.weight")[1], "block_out_channels": widths, "cross_attention_dim": context}
    if pooled is not None:
        told = ours("add_embedding.linear_1.weight")[1]
        found |= {"projection_class_embeddings_input_dim": told, "addition_time_embed_dim": (told - pooled) // EMBEDDED}
    if widths != config["block_out_channels"] and isinstance(config["attention_head_dim"], list):
        found["attention_head_dim"] = [max(1, width // HEAD) for width in widths]  # the number of heads, by diffusers' old name
    return {**config, **found}


def fitted_vae(config: Mapping[str, Any], shape: Shapes) -> dict[str, Any]:
    """`config` with the widths of the file's tensors, which `shape` knows without a prefix."""
    widths = [shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(len(config["block_out_channels"]))]
    return {**config, "block_out_channels": widths, "latent_channels": shape("decoder.conv_in.weight")[1]}


def fitted_text(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """`config` with the widths of the file's tensors, by plain names of transformers."""
    tokens, width = shapes["embeddings.token_embedding.weight"]
    found = {"vocab_size": tokens, "hidden_size": width, "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0]}
    found["intermediate_size"] = shapes["encoder.layers.0.mlp.fc1.weight"][0]
    if width != config["hidden_size"]:
        found["num_attention_heads"] = max(1, width // HEAD)
    if "text_projection.weight" in shapes:
        found["projection_dim"] = shapes["text_projection.weight"][0]
    return {**config, **found}
