"""Adapters from disk, in whichever dialect: strictly, and with a report of what was found."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from sdlora.adapter import Adapter
from sdlora.errors import SdloraError
from sdlora.files.container import contents, located
from sdlora.files.report import Report, report, unknown
from sdlora.formats import Decoded, alphas, decode
from sdlora.layers import named_layers
from sdlora.matching import matched, missing_message

PEFT_CONFIG = "adapter_config.json"  # beside PEFT's adapter_model.safetensors


def load(path: str | Path, modules: Mapping[str, nn.Module], allow_missing: bool = False) -> Adapter:
    """The adapter in `path`, in whichever dialect, for the layers of `modules` ({"unet": …, "text_encoder": …}).

    Strict: a layer that the model does not have, or has in another shape, and a tensor of unknown meaning is a SdloraError;
    `allow_missing` leaves out unknown tensors and layers that the model does not have. A 1 × 1 convolution and a Linear take
    each other's matrices.
    """
    return _onto(path, modules, allow_missing, *_decoded(path))


def load_reported(path: str | Path, modules: Mapping[str, nn.Module], allow_missing: bool = False) -> tuple[Adapter, Report]:
    """`load`, and what was found."""
    adapter, found = _decoded(path)
    told = report(adapter, found.dialect, found.surplus).held_against(named_layers(modules))
    return _onto(path, modules, allow_missing, adapter, found), told


def _onto(path: str | Path, modules: Mapping[str, nn.Module], allow_missing: bool, adapter: Adapter, found: Decoded) -> Adapter:
    """What of `adapter` the model has a layer for, in the layers' own shapes."""
    layers = named_layers(modules)
    missing = [name for name in adapter.layers if name not in layers]
    if missing and (not allow_missing or len(missing) == len(adapter.layers)):
        raise SdloraError(missing_message(str(path), missing, adapter, modules))
    strange = unknown(found.surplus)
    if strange and not allow_missing:
        raise SdloraError(
            f"{path}: {len(strange)} of its tensors belong to no layer of a LoRA, for example {strange[0]}; "
            "the file is damaged, or holds more than a LoRA (in Python allow_missing=True leaves them out)"
        )
    fitted = {name: _fitted(update, layers[name]) for name, update in adapter.layers.items() if name in layers}
    adapter = Adapter(fitted, adapter.metadata)
    matched(modules, adapter, str(path), layers)
    return adapter


def read(path: str | Path) -> Adapter:
    """The adapter in `path` without a model to hold it against."""
    return _decoded(path)[0]


def read_reported(path: str | Path) -> tuple[Adapter, Report]:
    """`read`, and what was found; no layer counts as matched."""
    adapter, found = _decoded(path)
    return adapter, report(adapter, found.dialect, found.surplus)


def _decoded(path: str | Path) -> tuple[Adapter, Decoded]:
    file = located(path)
    tensors, metadata = contents(file)
    beside = file.parent / PEFT_CONFIG
    try:
        known = metadata if alphas.CONFIG in metadata or not beside.is_file() else metadata | {alphas.CONFIG: _text(beside)}
        decoded = decode(tensors, known)
    except SdloraError as error:
        raise SdloraError(f"{file}: {error}") from error
    return Adapter(decoded.layers, metadata), decoded


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SdloraError(f"the {path.name} beside it cannot be read as text ({error})") from error


def format_of(path: str | Path) -> str:
    """The dialect of the file: see formats.Decoded."""
    return _decoded(path)[1].dialect


def _fitted(update: Any, layer: nn.Module) -> Any:
    """A and B with the layer's number of axes, where that takes nothing but axes of size 1."""
    linear = isinstance(layer, nn.Linear)
    if linear and update.a.dim() == 4 and tuple(update.a.shape[2:]) == (1, 1):
        return replace(update, a=update.a.flatten(1), b=update.b.flatten(1))
    if not linear and update.a.dim() == 2:
        return replace(update, a=update.a[..., None, None], b=update.b[..., None, None])
    return update
