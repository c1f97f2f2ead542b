"""Adapters from disk, in whichever dialect: strictly, and with a report of what was found."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from sdlora.adapter import Adapter
from sdlora.errors import SdloraError
from sdlora.files.container import contents, located
from sdlora.files.report import Report, report
from sdlora.formats import alphas, decode
from sdlora.layers import named_layers
from sdlora.matching import matched, missing_message

PEFT_CONFIG = "adapter_config.json"  # beside PEFT's adapter_model.safetensors


def load(path: str | Path, modules: Mapping[str, nn.Module], allow_missing: bool = False) -> Adapter:
    """The adapter in `path`, in whichever dialect, for the layers of `modules` ({"unet": …, "text_encoder": …}).

    Strict: a layer that the model does not have, or has in another shape, and a tensor of unknown meaning is a SdloraError;
    `allow_missing` leaves out unknown tensors and layers that the model does not have. A 1 × 1 convolution and a Linear take
    each other's matrices.
    """
    return load_reported(path, modules, allow_missing)[0]


def load_reported(path: str | Path, modules: Mapping[str, nn.Module], allow_missing: bool = False) -> tuple[Adapter, Report]:
    """`load`, and what was found."""
    layers = named_layers(modules)
    adapter, found = read_reported(path)
    found = found.held_against(layers)
    if found.unmatched and (not allow_missing or not found.matched):
        raise SdloraError(missing_message(str(path), list(found.unmatched), adapter, modules))
    if found.unknown and not allow_missing:
        raise SdloraError(
            f"{path}: {len(found.unknown)} of its tensors belong to no layer of a LoRA, for example {found.unknown[0]}; "
            "the file is damaged, or holds more than a LoRA (in Python allow_missing=True leaves them out)"
        )
    fitted = {name: _fitted(adapter.layers[name], layers[name]) for name in found.matched}
    adapter = Adapter(fitted, adapter.metadata)
    matched(modules, adapter, str(path))
    return adapter, found


def read(path: str | Path) -> Adapter:
    """The adapter in `path` without a model to hold it against."""
    return read_reported(path)[0]


def read_reported(path: str | Path) -> tuple[Adapter, Report]:
    """`read`, and what was found; no layer counts as matched."""
    file = located(path)
    tensors, metadata = contents(file)
    beside = file.parent / PEFT_CONFIG
    try:
        known = metadata if alphas.CONFIG in metadata or not beside.is_file() else metadata | {alphas.CONFIG: _text(beside)}
        decoded = decode(tensors, known)
    except SdloraError as error:
        raise SdloraError(f"{file}: {error}") from error
    adapter = Adapter(decoded.layers, metadata)
    return adapter, report(adapter, decoded.dialect, decoded.surplus)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SdloraError(f"the {path.name} beside it cannot be read as text ({error})") from error


def format_of(path: str | Path) -> str:
    """The dialect of the file: see formats.Decoded."""
    return read_reported(path)[1].dialect


def _fitted(update: Any, layer: nn.Module) -> Any:
    """A and B with the layer's number of axes, where that takes nothing but axes of size 1."""
    linear = isinstance(layer, nn.Linear)
    if linear and update.a.dim() == 4 and tuple(update.a.shape[2:]) == (1, 1):
        return replace(update, a=update.a.flatten(1), b=update.b.flatten(1))
    if not linear and update.a.dim() == 2:
        return replace(update, a=update.a[..., None, None], b=update.b[..., None, None])
    return update
