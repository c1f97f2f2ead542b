"""PNG files that carry their settings: a text in AUTOMATIC1111's words for people and other tools, and JSON to read back exactly."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from sdlora.atomic import replacing
from sdlora.errors import SdloraError

TEXT, JSON = "parameters", "sdlora"  # the names of the two chunks


def save_png(image: Image.Image, path: str | Path, settings: Mapping[str, Any]) -> None:
    """Write `image` to `path`, whole or not at all. `settings` is anything that JSON can hold."""
    chunks = PngImagePlugin.PngInfo()
    if "prompt" in settings:
        chunks.add_text(TEXT, infotext(settings))
    chunks.add_text(JSON, json.dumps(settings))
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that `save_png` wrote; SdloraError if the file is no picture or carries none."""
    try:
        with Image.open(path) as image:
            image.load()  # chunks may follow the pixels
            text = image.info.get(JSON)
    except OSError as error:
        raise SdloraError(f"cannot read {path} as a picture: {error.strerror or error}") from error
    if text is None:
        raise SdloraError(f"{path} carries no settings of sdlora; only its own PNGs do, and many programs drop them on saving")
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise SdloraError(f"the settings in {path} are damaged: {error}") from error
    return settings


def infotext(settings: Mapping[str, Any]) -> str:
    """The settings as AUTOMATIC1111 writes them: prompt with <lora:…> tags, negative prompt, and a line `Key: value, …`."""
    adapters = [adapter for adapter in settings.get("adapters", ()) if "tag" not in adapter]  # the prompt has the others' tags already
    tags = "".join(f" <lora:{Path(a['file']).stem}:{_strength(a['strength'])}>" for a in adapters)
    lines = [f"{settings['prompt']}{tags}"]
    if settings.get("negative"):
        lines.append(f"Negative prompt: {settings['negative']}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in _fields(settings).items() if value not in (None, "")))
    return "\n".join(lines)


def _strength(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    base = settings.get("base", {})
    size = f"{settings['width']}x{settings['height']}" if "width" in settings and "height" in settings else None
    hashes = ", ".join(f"{Path(a['file']).stem}: {a['hash']}" for a in settings.get("adapters", ()) if a.get("hash"))
    return {
        "Steps": settings.get("steps"),
        "Sampler": settings.get("sampler"),
        "Schedule type": settings.get("schedule"),
        "CFG scale": settings.get("guidance"),
        "Seed": settings.get("seed"),
        "Size": size,
        "Model hash": base.get("hash", "")[:10],
        "Model": base.get("name"),
        "Clip skip": settings.get("clip_skip"),
        "Emphasis": settings.get("emphasis"),
        "Lora hashes": hashes,
        "Version": settings.get("version"),
    }


def _quoted(value: Any) -> str:
    """AUTOMATIC1111's rule: what has a comma, colon or newline in it stands in JSON's quotes."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text
