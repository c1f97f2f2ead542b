"""A person's first training: a folder of pictures and not one setting. What follows from the folder, and why."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdlora import config as settings_file
from sdlora import models
from sdlora.data import folder as folders
from sdlora.errors import SdloraError

LEAST, MOST, EACH, EPOCHS = 2000, 4000, 120, 10  # pictures trained on: EACH times each within bounds, and EPOCHS times each at least
LONGEST_TRIGGER = 4  # words
LIGHT: dict[str, dict[str, Any]] = {
    "sd1": {"batch_size": 2, "accumulate": 2},
    "sd2": {"batch_size": 2, "accumulate": 2},
    "sdxl": {"batch_size": 1, "accumulate": 4, "gradient_checkpointing": True},
}
ARTICLES = {"a", "an", "the"}


def settings(folder: Path, overrides: Sequence[str], header: Mapping[str, Any], say: Callable[[str], object]) -> dict[str, Any]:
    """Settings for `folder` that neither the overrides nor an adapter's header give; `say` hears what was chosen."""
    given = {text.partition("=")[0].strip() for text in overrides} | header.keys()
    found: dict[str, Any] = {"images": str(folder.resolve())}
    words = title(folder)
    captions = _captions(folder)
    reasons = []
    if not captions and "caption" not in given:
        found["caption"] = words
        reasons.append(f"no captions: every picture is called {words!r}")
    if "trigger" not in given:
        trigger = words if "caption" in found else common(captions)
        if trigger:
            found["trigger"] = trigger
            reasons.append(f"trigger {trigger!r}" + ("" if "caption" in found else ", which is in every caption"))
    if not given & {"batch_size", "accumulate", "gradient_checkpointing"}:
        found |= light(_last("base", overrides) or str(header.get("base", "emoji")))
    if "steps" not in given:
        count = len(folders.scan(folder, found.get("caption", "")))
        per_step = _number("batch_size", overrides, {**found, **header}, 8) * _number("accumulate", overrides, {**found, **header}, 1)
        found["steps"] = steps(count, per_step)
        reasons.append(f"{count} pictures: {found['steps']} steps of {per_step}")
    if "output" not in given:
        found["output"] = str(output(words))
        reasons.append(f"into {found['output']}")
    if reasons:
        say("; ".join(reasons))
    return found


def caption(folder: Path) -> str | None:
    """What the pictures of a folder are called of which none has a caption; None where one has."""
    return None if _captions(folder) else title(folder)


def light(base: str) -> dict[str, Any]:
    """For a base that is not built in, what graphics cards of a usual size hold."""
    return {} if base in models.BUILT_IN else LIGHT[models.opened(base).family.name]


def steps(images: int, per_step: int) -> int:
    """Optimiser steps for so many pictures."""
    samples = max(LEAST, min(EACH * images, MOST), EPOCHS * images)
    return max(1, round(samples / per_step))


def title(folder: Path) -> str:
    """The folder's name in words; kohya's "10_sks dog" is "sks dog"."""
    name = re.sub(r"^\d+_(?=.)", "", folder.resolve().name)
    return re.sub(r"[\W_]+", " ", name).strip() or "pictures"


def output(words: str) -> Path:
    return Path("runs") / (re.sub(r"[^\w-]+", "-", words).strip("-") or "adapter")


def images_of(overrides: Sequence[str]) -> Path | None:
    """The image folder that the overrides name."""
    found = _last("images", overrides)
    return Path(found) if found else None


def common(captions: Sequence[str]) -> str | None:
    """The longest run of words that every caption has; no article at its ends, and None where it is long, as in captions that are
    all alike, or where there is one caption only."""
    if len(set(captions)) < 2:
        return None
    rows = [re.findall(r"[^\s,.;:]+|[,.;:]", caption) for caption in captions]
    first = min(rows, key=len)
    whole = ["\0".join(["", *row, ""]) for row in rows]
    for length in range(min(len(first), LONGEST_TRIGGER + 2), 0, -1):
        for start in range(len(first) - length + 1):
            words = first[start : start + length]
            if all("\0".join(["", *words, ""]) in row for row in whole) and (trigger := _trimmed(words)):
                return trigger
    return None


def _trimmed(words: list[str]) -> str | None:
    """Without articles and punctuation at the ends; None if nothing is left, or too much, or punctuation within."""
    while words and (words[0].lower() in ARTICLES or not words[0][0].isalnum()):
        words = words[1:]
    while words and (words[-1].lower() in ARTICLES or not words[-1][-1].isalnum()):
        words = words[:-1]
    usable = words and len(words) <= LONGEST_TRIGGER and all(word[0].isalnum() for word in words)
    return " ".join(words) if usable else None


def _captions(folder: Path) -> list[str]:
    """Of all pictures; none if not one has a caption file. SdloraError for a folder without pictures."""
    found = [picture.caption for picture in folders.scan(folder, "")]
    return found if any(found) else []


def _number(name: str, overrides: Sequence[str], header: Mapping[str, Any], default: int) -> int:
    value = _last(name, overrides)
    try:
        number = int(value or header.get(name, default))
    except ValueError:
        number = 0
    if number < 1:
        raise SdloraError(f"{name} is {value}; it should be a whole number, and 1 at least")
    return number


def _last(name: str, overrides: Sequence[str]) -> str | None:
    """The value that the overrides give `name`, as text."""
    values = [value for key, value in map(settings_file.parse_override, overrides) if key == name]
    return values[-1].strip("\"'") if values else None
