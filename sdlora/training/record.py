"""What a run folder says of itself beside its settings: which pictures, and on what machine by what command it was made."""

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from sdlora import __version__, texts
from sdlora.data import pictures
from sdlora.training.batches import Source
from sdlora.training.config import TrainConfig
from sdlora.training.run import Run

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "pillow")
SECRET = re.compile(r"(?i)^(-{0,2}[\w.-]*(?:token|secret|passw|api_?key|credential)[\w.-]*)=.*", re.DOTALL)


def manifest(run: Run) -> list[dict[str, Any]]:
    """One entry per picture of each part: "images", "prior" and "validation"."""
    parts = [*run.sources, *([run.held.source] if run.held else [])]
    return [entry for part in parts for entry in _entries(part, run.components.factor)]


def _entries(part: Source, factor: int) -> Iterator[dict[str, Any]]:
    sizes: dict[str, dict[tuple[int, int], None]] = {}  # each once, also of a picture that lies there twice
    for row in part.data.rows:
        sizes.setdefault(row.key, {})[factor * row.shape[1], factor * row.shape[0]] = None
    for example in part.data.examples:
        height, width = pictures.extent(example.path)
        yield {
            "part": part.name,
            "file": example.path.name,
            "sha256": example.digest,
            "captions": list(example.captions),
            "size": [width, height],
            "buckets": [list(size) for size in sizes[example.digest[:16]]],
        }


def environment(device: torch.device, precision: str, processes: int) -> dict[str, Any]:
    """Versions, device, commit and command line of this start."""
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command(sys.argv),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "precision": precision,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "versions": {"sdlora": __version__} | {name: _version(name) for name in PACKAGES},
    }
    return found | ({"cuda": torch.version.cuda} if device.type == "cuda" else {})


def command(words: Sequence[str]) -> str:
    """The command line, with the home folder as ~ and without the values of what is named like a secret."""
    home = str(Path.home())
    shown = [word if _setting(word) else SECRET.sub(r"\1=…", word) for word in words]
    return " ".join(word.replace(home, "~") if home != "/" else word for word in [Path(shown[0]).name, *shown[1:]])


def _setting(word: str) -> bool:
    """Whether it is one of a training's: keep_tokens holds no secret."""
    return word.partition("=")[0].strip() in TrainConfig.model_fields


def commit() -> str | None:
    """Of the source tree that runs, with a + if it has changes; None where it is an installed package."""
    here = Path(__file__).parent
    said = [_said(["git", "-C", str(here), *words]) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", str(here.parent)))]
    return None if said[0] is None else said[0] + ("+" if said[1] else "")


def write(path: Path, data: Any) -> None:
    texts.write(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def add(path: Path, data: Any) -> None:
    """`data` behind what the file, a list, has already: a run that goes on may do so elsewhere."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = []
    write(path, [*before, data])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _said(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
