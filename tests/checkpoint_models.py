"""Base models of the true topology and CLIP's true vocabulary, narrow and with random weights, made with diffusers' own classes."""

import copy
import functools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bases import enliven, save
from sdlora import stored
from sdlora.checkpoints import build, configs, single, tokenizer
from sdlora.checkpoints.links import given
from sdlora.checkpoints.opened import kinds, skeletons
from sdlora.families import FAMILIES
from sdlora.stored import Stored

CONTEXT = {"sd1": 64, "sd2": 128, "sdxl": 64 + 128}


def text(config: dict[str, Any], width: int) -> dict[str, Any]:
    own = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": max(1, width // 64)}
    return config | own | ({"projection_dim": width} if config["projection_dim"] == config["hidden_size"] else {})


def narrow(family: str) -> dict[str, Any]:
    """The family's configurations with every width a fraction of the true one, and all blocks and layers there."""
    settings = copy.deepcopy(configs.packaged(family))
    settings["unet"] |= {"block_out_channels": [32, 64, 128, 128][: len(settings["unet"]["block_out_channels"])], "sample_size": 8}
    settings["unet"]["cross_attention_dim"] = CONTEXT[family]
    if family != "sd1":
        settings["unet"]["attention_head_dim"] = [max(1, width // 64) for width in settings["unet"]["block_out_channels"]]
    settings["vae"] |= {"block_out_channels": [32, 64, 128, 128], "sample_size": 64}
    settings["text_encoder"] = text(settings["text_encoder"], 128 if family == "sd2" else 64)
    if family == "sdxl":
        settings["text_encoder_2"] = text(settings["text_encoder_2"], 128)
        settings["unet"] |= {"addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": 128 + 6 * 32}
    return settings


def make(folder: Path, family: str, seed: int = 0, **scheduler: Any) -> Path:
    """A base of `family` in diffusers' layout, saved by diffusers and transformers themselves."""
    import diffusers
    import transformers

    settings, facts = narrow(family), FAMILIES[family]
    schedule = settings["scheduler"] | scheduler
    parts: dict[str, Any] = {"scheduler": getattr(diffusers, schedule["_class_name"]).from_config(schedule)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for component, kind in kinds(facts).items():
            if kind.startswith("CLIP"):
                parts[component] = getattr(transformers, kind)(transformers.CLIPTextConfig(**settings[component]))
            else:
                parts[component] = getattr(diffusers, kind).from_config(settings[component])
            enliven(parts[component])
    for name, pad in zip(facts.tokenizers, settings["pads"], strict=True):
        parts[name] = tokenizer.tokenizer(pad)
    extra = {"force_zeros_for_empty_prompt": True} if family == "sdxl" else {"requires_safety_checker": False}
    return save(folder, facts.pipeline, parts, extra)


def hollow_file(path: Path, family: str, change: Callable[[dict], None] = lambda tensors: None, metadata: dict | None = None) -> Path:
    """The family's published single file, of the true size, after `change` of its tensors, with zeros for weights."""
    tensors = dict(true_tensors(family))
    change(tensors)
    return write_hollow(path, tensors, metadata or {})


@functools.cache
def true_tensors(family: str) -> dict[str, torch.Tensor]:
    """Key -> tensor on the meta device of the family's published single file, in fp16."""
    settings, tensors = configs.packaged(family), {}
    for component, module in skeletons(FAMILIES[family], settings).items():
        weights = {name: Stored(shape, torch.float16, lambda s=shape: empty(*s)) for name, shape in build.shapes(module).items()}
        links = single.links_of(FAMILIES[family], component, module, settings[component])
        tensors |= {key: tensor.read() for key, tensor in given(links, weights).items()}
    return tensors


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float16, device="meta")


def write_hollow(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Path:
    """A .safetensors of holes: names, shapes and zeros, which takes no room on the disk."""
    entries, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": stored.NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def assert_equal(one, other):
    assert (one.family, one.prediction, one.zeros_for_empty) == (other.family, other.prediction, other.zeros_for_empty)
    assert torch.equal(one.alphas_bar, other.alphas_bar)
    for mine, theirs in zip((*one.modules.values(), one.vae), (*other.modules.values(), other.vae), strict=True):
        a, b = mine.state_dict(), theirs.state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def drop(prefix):
    def change(tensors):
        for key in [key for key in tensors if key.startswith(prefix)]:
            del tensors[key]

    return change


def renamed(old, new):
    def change(tensors):
        for key in list(tensors):
            tensors[key.replace(old, new)] = tensors.pop(key)

    return change


def extra(name, *shape):
    return lambda tensors: tensors.update({name: empty(*shape)})
