"""A training that starts with an adapter's weights instead of none."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdlora import files
from sdlora.apply.inject import CHILD
from sdlora.errors import SdloraError
from sdlora.kinds.lora import Lora
from sdlora.layers import named_layers


def digest(path: Path) -> str:
    """sha256 of the file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise SdloraError(f"cannot read init {path}: {error.strerror}; give an adapter file (.safetensors)") from error


@torch.no_grad()
def start(modules: Mapping[str, nn.Module], path: Path) -> int:
    """Put the weights of the adapter in `path` into the trainable updates on `modules`, so that ΔW is the file's; how many layers.

    A layer of larger rank than in the file keeps its own fresh rows of A beyond, with zeros in B. Layers that the file does not
    have stay fresh. SdloraError for a layer of the file that is not trained, and for one of larger rank than the trained one.
    """
    adapter = files.load(path, modules)
    layers = named_layers(modules)
    for name, update in adapter.layers.items():
        trained = getattr(layers[name], CHILD, None)
        if trained is None:
            raise SdloraError(f"init {path} has the layer {name}, which is not trained here; add the target that it lies in")
        if not isinstance(update, Lora) or trained.kind is not Lora:
            raise SdloraError(
                f"init {path}: {name} is a {type(update).__name__}, and here a {trained.kind.__name__} is trained; leave init out"
            )
        if update.rank > trained.update.rank:
            raise SdloraError(f"init {path} has rank {update.rank} at {name}, and {trained.update.rank} is trained; set rank={update.rank}")
        _fill(trained, update)
    return len(adapter.layers)


def _fill(trained: Any, update: Lora) -> None:
    """α / r of the file goes into B, since α and r of the trained update are the settings'."""
    own: Lora = trained.update
    scale = update.scale / own.scale
    own.a[: update.rank] = _like(update.a, own.a)
    own.b[:, : update.rank] = _like(update.b * scale if scale != 1 else update.b, own.b)


def _like(source: Tensor, wanted: Tensor) -> Tensor:
    return source.to(wanted.device, wanted.dtype)
