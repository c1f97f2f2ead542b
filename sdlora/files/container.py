"""safetensors files as they are: tensors by key and the header's strings, in and out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from sdlora.errors import SdloraError


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of the file."""
    with opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})


def read_metadata(path: str | Path) -> dict[str, str]:
    """The header's strings, without reading the tensors."""
    with opened(Path(path)) as file:
        return dict(file.metadata() or {})


def opened(path: Path) -> Any:
    """A safetensors file open for reading, or one clear line."""
    if not path.is_file():
        raise SdloraError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give an adapter file (.safetensors)")
    try:
        return safetensors.safe_open(path, framework="pt")
    except safetensors.SafetensorError as error:
        raise SdloraError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error
    except OSError as error:
        raise SdloraError(f"cannot read {path}: {error.strerror or error}") from error


def serialised(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file. The library writes the metadata in a random order; here they are sorted."""
    plain = safetensors.torch.save(dict(tensors))
    length = int.from_bytes(plain[:8], "little")
    entries = json.loads(plain[8 : 8 + length])
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **entries}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + plain[8 + length :]
