"""Pickles of tensors (.ckpt, .pt, .pth, .bin): tensors only, since a pickle can run any program."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdlora import recognise
from sdlora.errors import SdloraError
from sdlora.stored.tensor import NAMES, Contents, Stored

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
NETWORK = "state_dict"  # under which trainers' checkpoints have the tensors, beside their own matters


def contents(path: Path) -> Contents:
    """The named tensors in `path`; SdloraError for whatever is more than tensors, for other things, and for a damaged file."""
    loaded = _loaded(path)
    state = loaded.get(NETWORK, loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping):
        raise SdloraError(f"{path} holds a {type(state).__name__}, not named tensors; a checkpoint is a table of tensors")
    tensors = {str(name): _stored(path, str(name), value) for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        what = recognise.what([str(key) for key in loaded])
        raise SdloraError(f"{path} {f'is {what}, not named tensors' if what else 'holds no tensors by name'}; give the model's own file")
    numbers = {str(k): float(v) for k, v in loaded.items() if isinstance(v, int | float)}
    return Contents(path, tensors, {}, numbers)


def _stored(path: Path, name: str, tensor: Tensor) -> Stored:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in NAMES:
        kind = f"{str(tensor.dtype).removeprefix('torch.')}, {str(tensor.layout).removeprefix('torch.')}"
        raise SdloraError(f"{path}: {name} is no plain tensor but {kind}; quantised and sparse weights are not supported")
    return Stored(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach())


def _loaded(path: Path) -> Any:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files from before torch 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SdloraError(
            f"{path} holds more than tensors (a pickle can run programs, so only tensors are read), or it is damaged; "
            "convert it to .safetensors with a tool that you trust"
        ) from error
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise SdloraError(f"{path} is damaged ({reason}); fetch it again") from error
