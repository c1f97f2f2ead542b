"""Adapters to disk: whole or not at all, and the same bytes for the same adapter."""

from pathlib import Path

import torch
from torch import Tensor

from sdlora.adapter import Adapter
from sdlora.atomic import replacing
from sdlora.errors import SdloraError, nearest
from sdlora.files.container import serialised
from sdlora.files.hashes import hashes
from sdlora.formats import FORMATS
from sdlora.matching import adapter_family


def save(adapter: Adapter, path: str | Path, format: str = "kohya") -> Path:
    """Write `adapter` to `path`. The same adapter and metadata give the same bytes."""
    if format not in FORMATS:
        raise SdloraError(f"unknown adapter format {format!r}{nearest(format, FORMATS)}")
    if not adapter.layers:
        raise SdloraError(f"an adapter without layers is not written ({path}); choose other components or layers")
    encoded = FORMATS[format].encode(adapter.layers, adapter_family(adapter))
    tensors = {key: _copy(tensor) for key, tensor in encoded.items()}
    stale = {key for dialect in FORMATS.values() for key in dialect.header(adapter.layers)}
    metadata = {key: value for key, value in adapter.metadata.items() if key not in stale}
    metadata |= FORMATS[format].header(adapter.layers)
    data = serialised(tensors, metadata | hashes(tensors, metadata))
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def _copy(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, and sharing no memory: safetensors refuses what does."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
