"""Networks without weights, and the weights into them: one tensor at a time, so that loading needs little more than the result."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sdlora.checkpoints.clip import plain
from sdlora.checkpoints.origins import remember
from sdlora.errors import SdloraError
from sdlora.stored import Stored

SHOWN = 3  # names in a message


def skeleton(kind: str, config: Mapping[str, Any]) -> Any:
    """The network of class `kind` (of diffusers or transformers) on the meta device: names and shapes, no memory."""
    from sdlora import imports

    with imports.unswept():
        imports.lighten()
        import diffusers
        import transformers

        network = getattr(transformers if kind.startswith("CLIP") else diffusers, kind)
    with torch.device("meta"):
        if kind.startswith("CLIP"):
            known = {key: value for key, value in config.items() if not key.startswith("_")}
            return network(transformers.CLIPTextConfig(**known))
        return network.from_config(dict(config))


def names(module: nn.Module) -> dict[str, str]:
    """Plain name -> the module's own name of each parameter. Buffers are not in files: they follow from the configuration."""
    return {plain(name): name for name, _ in module.named_parameters()}


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {plain(name): tuple(parameter.shape) for name, parameter in module.named_parameters()}


def check(component: str, module: nn.Module, weights: Mapping[str, Stored], where: object) -> None:
    """SdloraError where a tensor is missing, has another shape or is of whole numbers."""
    expected = shapes(module)
    missing = [name for name in expected if name not in weights]
    if missing:
        raise SdloraError(
            f"{where} lacks {len(missing)} of {len(expected)} tensors of the {component}: {some(missing)}; "
            "it is cut off, renamed, or of another architecture"
        )
    for name, shape in expected.items():
        found = weights[name]
        if found.shape != shape:
            said = f"{where}: {name} of the {component} is {list(found.shape)}, and its configuration says {list(shape)}"
            raise SdloraError(f"{said}; weights and configuration have to come from one model")
        if not found.dtype.is_floating_point:
            raise SdloraError(f"{where}: {name} of the {component} is {found.dtype}; quantised weights are not supported")


def some(listed: list[str]) -> str:
    return ", ".join(listed[:SHOWN]) + (", …" if len(listed) > SHOWN else "")


def fill(module: Any, weights: Mapping[str, Stored], device: str | torch.device, dtype: torch.dtype) -> Any:
    """`module` with `weights` (checked, by plain names) on `device` in `dtype`, frozen and in evaluation mode.

    Each tensor is copied out of the mapped file and the file's pages are given back, so that memory never holds much
    beyond the result, whatever precision the file has.
    """
    state = {}
    for short, own in names(module).items():
        state[own] = weights[short].read().to(device=device, dtype=dtype, copy=True).contiguous()
        weights[short].release()
    assign(module, state, device)
    remember(module, weights)
    return module


def assign(module: Any, state: Mapping[str, torch.Tensor], device: str | torch.device) -> Any:
    """`module` with the parameters of `state`, by its own names, and with its buffers; frozen and in evaluation mode."""
    module.load_state_dict(state, strict=False, assign=True)
    for path, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            _number(module, path, buffer, device)
    return module.eval().requires_grad_(False)


def _number(module: nn.Module, path: str, buffer: torch.Tensor, device: str | torch.device) -> None:
    """The only buffer these networks have: the positions 0, 1, … of CLIP's tokens."""
    parent, _, leaf = path.rpartition(".")
    if leaf != "position_ids":
        raise NotImplementedError(f"unknown buffer {path}")
    positions = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
    module.get_submodule(parent).register_buffer(leaf, positions, persistent=False)
