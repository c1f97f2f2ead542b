"""Captions in one file for many images: Hugging Face's metadata.jsonl, kohya's JSON Lines, and kohya's JSON of captions and tags."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora import texts
from sdlora.captions import plain
from sdlora.errors import SdloraError

NAMES = ("metadata.jsonl", "metadata.json", "meta_lat.json", "meta_clean.json", "meta_cap_dd.json", "meta_cap.json")  # first found
FILES = ("file_name", "image_path", "image", "path", "file")
TEXTS = ("text", "texts", "caption", "captions", "prompt")


@dataclass(frozen=True)
class Metadata:
    path: Path
    captions: Mapping[str, tuple[str, ...]]  # by the image's name as it is written there

    def of(self, image: Path) -> tuple[str, ...]:
        """The captions of `image`, () where it is not named: by its path, absolute or from here, with its suffix or without."""
        return next((self.captions[name] for name in _names(image, self.path.parent) if name in self.captions), ())

    def missing(self, suffixes: Collection[str]) -> list[str]:
        """The names with one of the suffixes that no file has."""
        named = (name for name in self.captions if Path(name).suffix.lower() in suffixes)
        return [name for name in named if not (self.path.parent / name).exists()]


def _names(image: Path, folder: Path) -> Iterator[str]:
    whole = image.absolute()
    yield whole.as_posix()
    yield whole.with_suffix("").as_posix()
    if whole.is_relative_to(folder.absolute()):
        near = whole.relative_to(folder.absolute())
        yield near.as_posix()
        yield near.with_suffix("").as_posix()
    else:
        yield image.name


def find(folder: Path) -> Metadata | None:
    """What lies in `folder`."""
    path = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    return read(path) if path else None


def read(path: Path) -> Metadata:
    """SdloraError for a file that is no JSON, or in which no image has a caption."""
    text = texts.read(path, "JSON with the captions of the images")
    entries = _lines(text, path) if path.suffix.lower() == ".jsonl" else _whole(text, path)
    found = {name: captions for name, entry in entries if (captions := _captions(entry))}
    if not found:
        raise SdloraError(f'no image has a caption in {path}; a line is {{"file_name": "a.png", "text": "what it shows"}}')
    return Metadata(path, found)


def _lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            entry = _json(line, f"line {number} of {path}")
            name = next((entry[key] for key in FILES if key in entry), None) if isinstance(entry, dict) else None
            if not isinstance(name, str):
                raise SdloraError(f'line {number} of {path} names no image; a line is {{"file_name": "a.png", "text": "what it shows"}}')
            yield name, entry


def _whole(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """{image: {"caption": …, "tags": …}} as kohya's scripts write it, or {image: caption}."""
    data = _json(text, str(path))
    if not isinstance(data, dict):
        raise SdloraError(f"{path} is a {type(data).__name__}; it should be an object with an image's name for each caption")
    return iter(data.items())


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SdloraError(
            f"{where} is not valid JSON: {error}; mend it, or delete the file and write captions beside the images"
        ) from error


def _captions(entry: Any) -> tuple[str, ...]:
    if not isinstance(entry, dict):
        return _texts(entry)
    found = next((texts for key in TEXTS if (texts := _texts(entry.get(key)))), ())
    tags = _texts(entry.get("tags"))
    return tuple(f"{text}, {tags[0]}" for text in found) if found and tags else found or tags


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in (plain(v) for v in values if isinstance(v, str)) if text)
