"""Settings from TOML files, JSON lines and Python, checked one by one; unknown names get the nearest valid one."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import create_model

from sdlora import config
from sdlora.config import NAME_OR_FOLDER, Settings
from sdlora.drawing.settings import NONE, OPTIONAL, PICTURE, Drawing, scope
from sdlora.errors import SdloraError
from sdlora.generation.demands import NEEDS
from sdlora.generation.sources import ALPHA

HIDDEN = {"named"}


@cache
def model() -> type[Settings]:
    """Drawing as a pydantic model: every setting optional, so that one knows what was said."""
    hints = get_type_hints(Drawing)
    known: dict[str, Any] = {f.name: (hints[f.name] | None, None) for f in fields(Drawing) if f.name not in HIDDEN}
    known["prompt"] = (str | tuple[str, ...] | None, None)
    known["base"] = (Annotated[str, NAME_OR_FOLDER] | None, None)
    return create_model("Drawing", __base__=Settings, **known)


def from_toml(path: Path) -> dict[str, Any]:
    """The settings that a file names. Its relative paths start at its folder."""
    return checked(config.read_toml(path), f"in {path}", path.absolute().parent)


def checked(data: Mapping[str, Any], where: str, folder: Path) -> dict[str, Any]:
    """`data` with every name and value examined; relative paths are seen from `folder`."""
    origin = {key: where for key in data}
    config.check_keys(model(), data, origin)
    off = {name: NONE for name, value in data.items() if is_off(name, value)}
    said = {name: value for name, value in data.items() if name not in off}
    found = config.validated(model(), {**said, **_placed(said, folder)}, origin)
    given = {name: getattr(found, name) for name in found.model_fields_set}
    values = {name: (value,) if name == "prompt" and isinstance(value, str) else value for name, value in given.items()}
    return {name: value for name, value in values.items() if value is not None} | off


def of_picture(data: Mapping[str, Any], where: str, folder: Path) -> dict[str, Any]:
    """`checked`, for what concerns a single picture: SdloraError for a setting of the whole run."""
    found = checked(data, where, folder)
    for name in found.keys() - set(scope(PICTURE)):
        raise SdloraError(f"{name} {where} holds for all pictures of a run; put it on the command line or into the settings file")
    return found


def is_off(name: str, value: Any) -> bool:
    return name in OPTIONAL and value == NONE


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Several layers of settings as one; the later ones win.

    What one of them switches off takes what the earlier ones say with it, and all that has no effect without: hires = "none" a hires_steps.
    """
    found: dict[str, Any] = {}
    for layer in layers:
        gone = {other for name, value in layer.items() if is_off(name, value) for other in _bound(name)}
        found = {name: value for name, value in found.items() if name not in gone} | dict(layer)
    return found


def merged(*layers: Mapping[str, Any]) -> Drawing:
    """A Drawing of several layers of settings, as `layered` has them."""
    return Drawing(**{name: value for name, value in layered(*layers).items() if not is_off(name, value)})


def _bound(name: str) -> set[str]:
    """The settings without an effect when this one is unset, at whatever remove; itself too."""
    found, before = {name}, 0
    while len(found) > before:
        before = len(found)
        found |= {setting for setting, needed in NEEDS.items() if needed in found}
    return found


def _placed(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The paths among the settings, seen from `folder`; "style.safetensors=0.8" is one too."""
    result: dict[str, Any] = {}
    for name in ("output", "vae", "prompts", "init", "mask"):
        if isinstance(data.get(name), str) and (name, data[name]) != ("mask", ALPHA):
            result[name] = _at(folder, data[name])
    for name in ("adapter", "adapters"):
        if isinstance(value := data.get(name), Sequence):
            listed = [value] if isinstance(value, str) else list(value)
            result[name] = [_at(folder, v) if isinstance(v, str) and v != NONE else v for v in listed]
    base = data.get("base")
    if isinstance(base, str) and ("/" in base or base.startswith((".", "~"))) and (folder / Path(base).expanduser()).exists():
        result["base"] = _at(folder, base)  # else it is a Hub id
    return result


def _at(folder: Path, text: str) -> str:
    return os.path.normpath(folder / Path(text).expanduser())
