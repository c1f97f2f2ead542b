"""Adapters on disk: safetensors in one of the dialects of `formats`, strict to read, atomic and deterministic to write."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sdlora.adapter import Adapter
from sdlora.atomic import replacing
from sdlora.errors import SdloraError, nearest
from sdlora.families import FAMILIES
from sdlora.formats import FORMATS, detect
from sdlora.layers import named_layers
from sdlora.matching import matched, missing_message

SETTINGS = "sdlora.settings"  # the header's key of the run's full settings, JSON


def save(adapter: Adapter, path: str | Path, format: str = "kohya") -> Path:
    """Write `adapter` to `path`. The same adapter and metadata give the same bytes."""
    if format not in FORMATS:
        raise SdloraError(f"unknown adapter format {format!r}{nearest(format, FORMATS)}")
    if not adapter.layers:
        raise SdloraError(f"an adapter without layers is not written ({path})")
    tensors = {key: _copy(tensor) for key, tensor in FORMATS[format].encode(adapter.layers).items()}
    stale = {key for dialect in FORMATS.values() for key in dialect.header(adapter.layers)}
    metadata = {key: value for key, value in adapter.metadata.items() if key not in stale}
    metadata |= FORMATS[format].header(adapter.layers)
    data = serialised(tensors, metadata | hashes(tensors, metadata))
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def load(path: str | Path, modules: Mapping[str, nn.Module], allow_missing: bool = False) -> Adapter:
    """The adapter in `path`, in whichever dialect, for the layers of `modules` ({"unet": …, "text_encoder": …}).

    Strict: a layer that the model does not have, or has in another shape, is a SdloraError; `allow_missing` drops the
    former. A 1 × 1 convolution and a Linear take each other's matrices.
    """
    layers = named_layers(modules)
    adapter = read(path, layers)
    missing = [name for name in adapter.layers if name not in layers]
    if missing and (not allow_missing or len(missing) == len(adapter.layers)):
        raise SdloraError(missing_message(str(path), missing, len(adapter.layers), modules))
    fitted = {name: _fitted(update, layers[name]) for name, update in adapter.layers.items() if name in layers}
    adapter = Adapter(fitted, adapter.metadata)
    matched(modules, adapter, str(path))
    return adapter


def read(path: str | Path, names: Iterable[str] = ()) -> Adapter:
    """The adapter in `path` without a model to hold it against. Layers not among `names` are called what the file calls them."""
    tensors, metadata = _contents(Path(path))
    try:
        layers = FORMATS[detect(tensors)].decode(tensors, names, metadata)
        _check_shapes(layers)
    except SdloraError as error:
        raise SdloraError(f"{path}: {error}") from error
    return Adapter(layers, metadata)


def format_of(path: str | Path) -> str:
    """The dialect of the file, a key of FORMATS."""
    tensors, _ = _contents(Path(path))
    try:
        return detect(tensors)
    except SdloraError as error:
        raise SdloraError(f"{path}: {error}") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """The header's strings, without reading the tensors."""
    with _opened(Path(path)) as file:
        return dict(file.metadata() or {})


def header(
    layers: Mapping[str, Any],
    *,
    name: str,
    base: str,
    base_hash: str = "",
    family: str = "sd1",
    prediction: str = "epsilon",
    targets: Sequence[str] = (),
    triggers: Sequence[str] = (),
    tag_frequency: Mapping[str, Mapping[str, int]] | None = None,
    resolution: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Metadata by the names that A1111, ComfyUI, kohya's tools (ss_…) and Stability's ModelSpec 1.0.1 (modelspec.…) read.

    `tag_frequency` is kohya's {folder: {tag: count}}; by default the trigger words, once each. `settings` is all else that
    made the adapter and has to be JSON. Layers of differing ranks: ss_network_dim and _alpha are the largest ones.
    """
    facts = FAMILIES[family]
    tags = tag_frequency if tag_frequency is not None else ({name: dict.fromkeys(triggers, 1)} if triggers else {})
    result = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(update.rank for update in layers.values())),
        "ss_network_alpha": _number(max(update.alpha for update in layers.values())),
        "ss_sd_model_name": base,
        "ss_base_model_version": facts.version(prediction),
        "ss_v2": str(family == "sd2"),
        "ss_output_name": name,
        "ss_tag_frequency": _compact(tags),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{facts.architecture(prediction)}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else "epsilon",
        "modelspec.trigger_phrase": ", ".join(triggers),
        "sdlora.base": base,
        "sdlora.base_hash": base_hash,
        "sdlora.targets": _compact(list(targets)),
        SETTINGS: _compact(dict(settings or {})),
    }
    if resolution is not None:
        result |= {"ss_resolution": f"({resolution}, {resolution})", "modelspec.resolution": f"{resolution}x{resolution}"}
    return result


def hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Kohya's two hashes and ModelSpec's, by which tools recognise an adapter whatever else its header says.

    sshs_model_hash: sha256 of all behind the header. sshs_legacy_hash: the first 8 digits of the sha256 of the bytes from
    0x100000 to 0x110000 of the file with the ss_… metadata only. modelspec.hash_sha256: the tensors in the order of their names.
    """
    plain = serialised(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    start = 8 + int.from_bytes(plain[:8], "little")
    ordered = hashlib.sha256()
    for key in sorted(tensors):
        ordered.update(safetensors.torch.save({"": tensors[key]})[-tensors[key].nbytes :] if tensors[key].nbytes else b"")
    return {
        "sshs_model_hash": hashlib.sha256(plain[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(plain[0x100000:0x110000]).hexdigest()[:8],
        "modelspec.hash_sha256": f"0x{ordered.hexdigest()}",
    }


def serialised(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file. The library writes the metadata in a random order; here they are sorted."""
    plain = safetensors.torch.save(dict(tensors))
    length = int.from_bytes(plain[:8], "little")
    entries = json.loads(plain[8 : 8 + length])
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **entries}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + plain[8 + length :]


def _copy(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, and sharing no memory: safetensors refuses what does."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})


def _opened(path: Path) -> Any:
    """A safetensors file open for reading, or one clear line."""
    if not path.is_file():
        raise SdloraError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give an adapter file (.safetensors)")
    try:
        return safetensors.safe_open(path, framework="pt")
    except safetensors.SafetensorError as error:
        raise SdloraError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error
    except OSError as error:
        raise SdloraError(f"cannot read {path}: {error.strerror or error}") from error


def _check_shapes(layers: Mapping[str, Any]) -> None:
    for name, update in layers.items():
        a, b = update.a, update.b
        whole = a.dim() in (2, 4) and b.dim() == a.dim() and a.shape[0] == b.shape[1] > 0 and tuple(b.shape[2:]) in ((), (1, 1))
        if not (whole and a.is_floating_point() and b.is_floating_point()):
            raise SdloraError(f"{name} is no pair of LoRA matrices: down {_shape(a)}, up {_shape(b)}")


def _fitted(update: Any, layer: nn.Module) -> Any:
    """A and B with the layer's number of axes, where that takes nothing but axes of size 1."""
    linear = isinstance(layer, nn.Linear)
    if linear and update.a.dim() == 4 and tuple(update.a.shape[2:]) == (1, 1):
        return replace(update, a=update.a.flatten(1), b=update.b.flatten(1))
    if not linear and update.a.dim() == 2:
        return replace(update, a=update.a[..., None, None], b=update.b[..., None, None])
    return update


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _number(value: float) -> str:
    """Kohya writes α = 8 as 8.0 and as 8 alike; whole numbers stay whole."""
    return str(int(value)) if value == int(value) else repr(value)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
