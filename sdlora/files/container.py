"""Adapter files as they are: tensors by key and the header's strings, in and out."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from sdlora import stored
from sdlora.errors import SdloraError

WITHIN = (  # what PEFT and diffusers call the file in the folder that they save
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
)


def located(path: str | Path) -> Path:
    """The file itself, or the adapter's file in a folder of PEFT's or diffusers'; SdloraError where there is none."""
    given = Path(path).expanduser()
    if given.is_dir():
        found = next((given / name for name in WITHIN if (given / name).is_file()), None)
        if found is None:
            raise SdloraError(f"{given} is a folder without {' or '.join(WITHIN[:2])}; give an adapter file (.safetensors)")
        return found
    if not given.is_file():
        raise SdloraError(f"{given} does not exist; give an adapter file (.safetensors)")
    return given


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of the file, read into memory."""
    found = stored.contents(path)
    return {key: tensor.read().clone() for key, tensor in found.tensors.items()}, found.metadata


def read_metadata(path: str | Path) -> dict[str, str]:
    """The header's strings, without reading the tensors."""
    return stored.contents(located(path)).metadata


def serialised(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file. The library writes the metadata in a random order; here they are sorted."""
    plain = safetensors.torch.save(dict(tensors))
    length = int.from_bytes(plain[:8], "little")
    entries = json.loads(plain[8 : 8 + length])
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **entries}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + plain[8 + length :]
