"""Settings from a TOML file and key=value overrides: validated, frozen, and with errors that name the place.

A relative path inside a TOML file starts at that file's folder, so that the file means the same wherever it is used from; a
relative path in an override starts at the current folder, where it was typed. `~` is the home folder in both.
"""

import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from sdlora.errors import SdloraError, nearest

NAME_OR_FOLDER = "a name, or a folder"  # marks a str field: a value with a slash, or that starts with "." or "~", is a path
NameOrFolder = Annotated[str, NAME_OR_FOLDER]
BASE = "a base model"  # marks one that may be a Hugging Face id, owner/model, as well, where there is no such path
BaseModelName = Annotated[str, NAME_OR_FOLDER, BASE]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FILES = (".safetensors", ".ckpt")  # how no id ends
Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """Base class of all settings: unknown keys are refused, nothing changes afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def load(cls: type[Model], path: str | Path | None = None, overrides: Sequence[str] = (), start: Mapping[str, Any] | None = None) -> Model:
    """A `cls` from the TOML file `path`, if any, and overrides such as "steps=24" or "prior.weight=0.5"; `start` is what neither says.

    An override's value is read as TOML (24, 0.5, true, ["a", "b"]) and otherwise as a plain string.
    """
    data: dict[str, Any] = {}
    origin: dict[str, str] = {}  # dotted key -> where it was set, for messages
    if path is not None:
        data = placed(cls, read_toml(Path(path)), Path(path).absolute().parent)
        origin = {key: f"in {path}" for key in _dotted(data)}
    check_keys(cls, data, origin)
    if start:
        data, above = placed(cls, start, Path.cwd()), data
        _merge(data, above, "")
    for text in overrides:
        key, value = parse_override(text)
        origin[key] = f"in {text!r}"
        change = _nested(key, _typed(cls, key, value))
        check_keys(cls, change, origin)
        _merge(data, placed(cls, change, Path.cwd()), key)
    return validated(cls, data, origin)


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SdloraError(f"cannot read the settings file {path}: {error.strerror}; give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SdloraError(f"{path} is not valid TOML: {error}") from error


def parse_override(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SdloraError(f"cannot read {text!r}: settings are changed by key=value, for example steps=24")
    return key.strip(), value.strip()


def check_keys(cls: type[BaseModel], data: Mapping[str, Any], origin: Mapping[str, str], prefix: str = "", root: Any = None) -> None:
    """SdloraError for a key that `cls` does not have, with the nearest that it has."""
    root = root or cls
    for key, value in data.items():
        name = prefix + key
        if key not in cls.model_fields:
            inner = (place for k, place in origin.items() if k == name or k.startswith(name + "."))
            where = next(inner, "") or next((place for k, place in origin.items() if name.startswith(k + ".")), "")
            raise SdloraError(f"unknown setting {name} {where}".rstrip() + nearest(name, _names(root)))
        nested = _nested_model(cls.model_fields[key].annotation)
        if nested:
            for table in _tables(value):
                check_keys(nested, table, origin, name + ".", root)


def validated(cls: type[Model], data: Mapping[str, Any], origin: Mapping[str, str] | None = None) -> Model:
    """`data` as a `cls`; strict: "3" is no number and 8.5 no whole number. SdloraError names every wrong setting."""
    try:
        # by way of JSON, because there strictness still lets a string be a path and a list be a tuple
        return cls.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise SdloraError("; ".join(dict.fromkeys(_explained(e, origin or {}) for e in error.errors()))) from error


def brief(error: Exception) -> str:
    """Of settings that are none the first that is wrong, of any other error what it is; one line."""
    return _explained(error.errors()[0], {}) if isinstance(error, ValidationError) else repr(error)


def _explained(error: Any, origin: Mapping[str, str]) -> str:
    name = ".".join(str(part) for part in error["loc"] if isinstance(part, str))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"the setting {name} is missing; add {name} = … to the settings file, or {name}=… to the command"
    if not name:
        return message
    value = error["input"]
    if error["type"] == "literal_error" and isinstance(value, str):
        return f"{name} is {value!r} {origin.get(name, '')}".rstrip() + nearest(value, re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"{name} is {value!r} {origin.get(name, '')}".rstrip() + f"; it is a table, so write {name}.NAME=VALUE"
    kind = "" if isinstance(value, (int, float)) else f", a {type(value).__name__}"
    return f"{name} is {value!r}{kind} {origin.get(name, '')}".rstrip() + "; " + message.replace("Input should be", "it should be")


def placed(cls: type[BaseModel], data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`data` with its relative paths made absolute, seen from `folder`."""
    result = dict(data)
    for key, value in data.items():
        field = cls.model_fields.get(key)
        if field is None:
            continue
        nested = _nested_model(field.annotation)
        if nested and isinstance(value, Mapping):
            result[key] = placed(nested, value, folder)
        elif nested and isinstance(value, list):
            result[key] = [placed(nested, table, folder) if isinstance(table, Mapping) else table for table in value]
        elif isinstance(value, str) and BASE in field.metadata and _is_hub_id(value, folder):
            continue
        elif isinstance(value, str) and _is_path(field.annotation, field.metadata, value):
            result[key] = os.path.normpath(folder / Path(value).expanduser())
        elif isinstance(value, list) and NAME_OR_FOLDER in field.metadata:
            result[key] = [os.path.normpath(folder / Path(v).expanduser()) if _named_by_path(v) else v for v in value]
    return result


def _is_path(annotation: Any, metadata: Sequence[Any], value: str) -> bool:
    if NAME_OR_FOLDER in metadata:
        return _named_by_path(value)
    return Path in (annotation, *get_args(annotation))


def _is_hub_id(value: str, folder: Path) -> bool:
    """Not where a path of this name is at hand: a file's own folder goes first, and what lies elsewhere would depend on the place."""
    there = any((place / value).exists() for place in (folder, Path.cwd()))
    return HUB_ID.fullmatch(value) is not None and not Path(value).suffix.endswith(FILES) and not there


def _named_by_path(value: Any) -> bool:
    return isinstance(value, str) and ("/" in value or value.startswith((".", "~")))


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    candidates = (annotation, *get_args(annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _tables(value: Any) -> list[Mapping[str, Any]]:
    """One table, or those of a list ([[name]] in TOML)."""
    return [table for table in (value if isinstance(value, list) else [value]) if isinstance(table, Mapping)]


def _names(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        nested = _nested_model(field.annotation)
        yield from _names(nested, f"{prefix}{name}.") if nested else [prefix + name]


def _dotted(data: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in data.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")


def _typed(cls: type[BaseModel], key: str, text: str) -> Any:
    """The override's value as TOML where that is a plain value, else the text itself; always the text for strings and paths."""
    model: type[BaseModel] | None = cls
    field = None
    for part in key.split("."):
        field = model.model_fields.get(part) if model else None
        model = _nested_model(field.annotation) if field else None
    if field is not None and field.annotation in (str, Path, str | None, Path | None):
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
    try:
        value = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    plain = isinstance(value["value"], (bool, int, float, str, list, dict)) and len(value) == 1
    return value["value"] if plain else text  # a date is a string here


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merge(data: dict[str, Any], change: Mapping[str, Any], text: str) -> None:
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(data.get(key), dict):
            _merge(data[key], value, text)
        else:
            data[key] = value


def dumps(settings: BaseModel) -> str:
    """The settings as TOML, every default spelled out; what is None is left out, since TOML has no word for it."""
    data = settings.model_dump(mode="json", exclude_none=True)
    lines = [f"{key} = {_toml(value)}" for key, value in data.items() if not isinstance(value, dict)]
    for key, table in data.items():
        if isinstance(table, dict):
            lines += ["", f"[{key}]", *(f"{_key(name)} = {_toml(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    """A name with dots, such as a layer's, is quoted: without, they would be tables."""
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name, ensure_ascii=False)


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return repr(value) if math.isfinite(value) else str(value)
        case int():
            return str(value)
        case list() | tuple():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case dict():
            return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
        case _:
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
