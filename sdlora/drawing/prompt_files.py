"""Prompts from a file: one a line, or JSON lines whose further keys are settings of their own."""

import json
from pathlib import Path
from typing import Any

from sdlora import texts
from sdlora.drawing import reading
from sdlora.drawing.settings import PICTURE, Drawing, scope
from sdlora.drawing.translate import requests as made
from sdlora.errors import SdloraError
from sdlora.generation import Request

SUFFIXES = {".jsonl", ".ndjson"}


def requests(drawing: Drawing) -> list[Request]:
    """Every line of `drawing.prompts` with every seed. SdloraError names the line."""
    if drawing.prompt:
        raise SdloraError(f"prompts on the command line and in {drawing.prompts}; put them all into the file")
    path = drawing.prompts
    assert path is not None
    common = {name: getattr(drawing, name) for name in scope(PICTURE)}
    found: list[Request] = []
    for number, line in _lines(path):
        where = f"in line {number} of {path}"
        own = _settings(line, where, path) if path.suffix.lower() in SUFFIXES else {"prompt": (line,)}
        try:
            found += made(reading.merged(common, own))
        except SdloraError as error:
            raise SdloraError(f"{error} ({where})") from error
    if not found:
        raise SdloraError(f"{path} has no prompts; write one a line")
    return found


def _lines(path: Path) -> list[tuple[int, str]]:
    text = texts.read(path, "a text file with a prompt a line, or JSON lines")
    return [(i, line.strip()) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _settings(line: str, where: str, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise SdloraError(f'not JSON {where}: {error}; write {{"prompt": "…", "seed": 7}}') from error
    if not isinstance(data, dict):
        raise SdloraError(f'no JSON object {where}; write {{"prompt": "…", "seed": 7}}')
    found = reading.of_picture(data, where, path.absolute().parent)
    if "prompt" not in found:
        raise SdloraError(f'no prompt {where}; write {{"prompt": "…", "seed": 7}}')
    return found
