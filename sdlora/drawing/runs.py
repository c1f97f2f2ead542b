"""A run that goes on where it stopped: which picture has which name, and which are missing.

The state is the pictures themselves, which appear whole or not at all, and manifest.json: the hash of a picture's settings -> its file.
A picture is asked for by its contents: prompts may be added, taken out and put in another order, and nothing is drawn twice.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora import texts
from sdlora.errors import SdloraError
from sdlora.generation import Request, record

NAME = "manifest.json"
IDLE = {"version", "device", "apply"}  # of a picture's settings: without a part in what it shows
VERSION = 1


@dataclass(frozen=True, eq=False)
class Plan:
    keys: list[str]  # of the pictures, in the order that they were asked for
    names: list[str]  # of their files; equal keys have one name
    missing: frozenset[int]  # places of those to draw
    entries: dict[str, dict[str, Any]]  # of the manifest: this run's and earlier ones'

    @property
    def known(self) -> int:
        """How many are there already."""
        return len(set(self.keys)) - len(self.missing)


def key(settings: Mapping[str, Any]) -> str:
    """sha256 of what makes a picture."""
    told = {name: value for name, value in settings.items() if name not in IDLE}
    return hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def plan(folder: Path, keys: Sequence[str], wanted: Sequence[Request], suffix: str = ".png") -> Plan:
    """Names for all pictures, those of the manifest first; the same for every process that looks at the same folder. Writes nothing."""
    entries = read(folder)
    number = max([record.next_number(folder) - 1, *(record.number(entry["file"]) for entry in entries.values())])
    names: list[str] = []
    missing: dict[str, int] = {}
    for i, (digest, request) in enumerate(zip(keys, wanted, strict=True)):
        entry = entries.get(digest)
        if entry is None or not entry["file"].endswith(suffix):
            number += 1
            entry = {"file": f"{number:04d}-seed{request.seed}{suffix}", "prompt": request.prompt, "seed": request.seed}
            entries[digest] = entry
        if not (folder / entry["file"]).is_file():
            missing.setdefault(digest, i)
        names.append(entry["file"])
    return Plan(list(keys), names, frozenset(missing.values()), entries)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest's entries by key; none without a manifest."""
    path = folder / NAME
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["version"] != VERSION:
            raise SdloraError(f"{path} is of another version of sdlora; choose another output folder")
        return {str(k): {"file": str(e["file"]), "prompt": e["prompt"], "seed": e["seed"]} for k, e in found["pictures"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SdloraError(f"{path} is not a run's manifest ({error}); delete it, or choose another output folder") from error


def write(folder: Path, plan: Plan) -> None:
    texts.write(folder / NAME, json.dumps({"version": VERSION, "pictures": plan.entries}, indent=1, ensure_ascii=False))
