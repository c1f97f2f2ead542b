"""metrics.jsonl: one JSON object per optimiser step, strictly JSON (RFC 8259), which knows neither Infinity nor NaN."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdlora import texts
from sdlora.training.loop import Step


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last one that was cut off by an interruption is left out."""
    result = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            result.append(json.loads(line))
        except ValueError:
            continue
    return result


def rewind(path: Path, step: int) -> None:
    """Forget what comes after `step`: those steps are done again."""
    kept = [line for line in read(path) if line["number"] <= step]
    texts.write(path, "".join(json.dumps(line) + "\n" for line in kept))


def numbers(step: Step) -> dict[str, float]:
    """A step's figures by name, for trackers."""
    return {name.replace("_", " "): float(value) for name, value in asdict(step).items() if name != "number"}


def append(path: Path, step: Step) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line(step), allow_nan=False) + "\n")


def line(step: Step) -> dict[str, Any]:
    """What is written of `step`: without a number for the gradient's norm, and "skipped", where fp16 overflowed and nothing was changed."""
    facts = asdict(step)
    return facts if math.isfinite(step.grad_norm) else facts | {"grad_norm": None, "skipped": True}
