"""An adapter's header as settings: what a training writes there, and how one reads it back to train again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora import files, models
from sdlora.errors import SdloraError
from sdlora.files.parts import PART
from sdlora.training import foreign
from sdlora.training.config import TrainConfig

HERE = (  # of this machine, or without a part in the adapter
    *("images", "folders", "regularisation", "metadata", "strict", "output", "cache", "cache_limit", "base", "vae", "init"),
    *("device", "samples", "validation"),
    *("save_every", "keep_states", "keep_checkpoints", "trackers"),
)
FACTS = ("images", "images_hash", "init_hash")  # written beside the settings


@dataclass(frozen=True)
class Again:
    settings: dict[str, Any]  # of a TrainConfig, as a TOML file would give them
    notes: tuple[str, ...] = ()  # what could not be taken over, one line each
    base_hash: str = ""  # of what it was trained with, where the header knows
    images_hash: str = ""
    init_hash: str = ""


def written(config: TrainConfig) -> dict[str, Any]:
    """The settings for an adapter's header: all that had a part in it, and no path."""
    fraction = config.validation.fraction
    held = {"validation": {"fraction": fraction}} if fraction else {}  # those pictures were not trained on
    return config.model_dump(mode="json", exclude=set(HERE)) | held


def read(path: Path) -> Again:
    """The settings that the adapter in `path` was trained with; SdloraError if its header does not tell."""
    metadata = files.read_metadata(path)
    if files.SETTINGS in metadata:
        return _own(path, metadata)
    if "ss_network_dim" in metadata:
        found, notes = foreign.settings(metadata, files.read(path))
        return Again(found, notes)
    fields = "neither sdlora's settings nor kohya's ss_… fields"
    raise SdloraError(f"the header of {path} does not say how it was trained ({fields}); train with a settings file")


def _own(path: Path, metadata: Mapping[str, str]) -> Again:
    try:
        data = json.loads(metadata[files.SETTINGS])
        facts = {name: str(data.pop(name, "")) for name in FACTS}
    except (ValueError, AttributeError) as error:
        raise SdloraError(f"{path}: {files.SETTINGS} in its header is not readable ({error}); the file was changed") from error
    settings = _without_none(data)
    unknown = [name for name in settings if name not in TrainConfig.model_fields]
    notes = tuple(f"{name} = {settings.pop(name)!r} is left out: this version does not have it" for name in unknown)
    if PART in metadata:
        notes += (f"{path.name} is a part of an adapter, and these are the settings of the whole; include chooses its layers",)
    base = metadata.get("sdlora.base", "")
    if base in models.BUILT_IN:
        settings["base"] = base
    return Again(settings, notes, metadata.get("sdlora.base_hash", ""), facts["images_hash"], facts["init_hash"])


def _without_none(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in data.items() if v is not None}


def differences(again: Again, config: TrainConfig, images_hash: str) -> list[str]:
    """In what the coming training differs from the one in the header, beside settings: one line each. SdloraError for an adapter
    that began with another's weights, if none is given."""
    result = []
    if again.images_hash and again.images_hash != images_hash:
        result.append(f"the pictures or captions in {config.images} are not those that it was trained on")
    if again.base_hash and again.base_hash != models.base_hash(config.base):
        result.append(f"the base {config.base} is not the one that it was trained on")
    if again.init_hash and config.init is None:
        raise SdloraError(f"it was trained from another adapter's weights (sha256 {again.init_hash[:12]}…); give that file as init=FILE")
    return result
