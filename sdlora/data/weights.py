"""A network's name for what it computes: a hash of its weights and configuration, whatever file they came from."""

import hashlib
import json
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_known: "WeakKeyDictionary[nn.Module, tuple[object, str]]" = WeakKeyDictionary()
STRANGERS = ("_name_or_path", "_diffusers_version", "transformers_version", "dtype", "torch_dtype", "force_upcast")


def weights_hash(module: nn.Module) -> str:
    """sha256 over all tensors and the configuration; remembered while no tensor is written to."""
    tensors = module.state_dict(keep_vars=True)
    state = tuple((id(tensor), tensor._version) for tensor in tensors.values() if not tensor.is_inference())
    known = _known.get(module)
    if known is None or known[0] != state:
        known = _known[module] = (state, _digest(module, tensors))
    return known[1]


def _digest(module: nn.Module, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(_config(module), sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _config(module: Any) -> dict[str, Any]:
    """What of the configuration has a part in the numbers; where it was read from has none."""
    config = module.config
    plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {key: value for key, value in plain.items() if key not in STRANGERS}
