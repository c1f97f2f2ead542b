"""Where bases, VAEs and adapters of known hashes were last seen on this machine, so that an old picture finds them again.

Pictures carry names and hashes, never paths. The note lies in the user's cache folder; without it, files have to be pointed at.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from sdlora import texts
from sdlora.checkpoints.hashes import cache_folder
from sdlora.errors import SdloraError

REMEMBERED = 2000  # entries, the latest ones


def remember(found: Mapping[str, str | Path]) -> None:
    """Hash -> path. What cannot be written down costs a question later on, nothing else."""
    known = _known()
    new = {digest: str(Path(path).expanduser().absolute()) for digest, path in found.items()}
    if all(known.get(digest) == path for digest, path in new.items()):
        return
    latest = {key: path for key, path in known.items() if key not in new} | new
    try:
        texts.write(cache_folder() / "places.json", json.dumps(dict(list(latest.items())[-REMEMBERED:]), indent=1))
    except (OSError, SdloraError):
        pass


def seen(digest: str) -> Path | None:
    """A file or folder that had this hash, or one that begins so, and is still there; whether it still has it is to be checked."""
    fitting = [Path(path) for key, path in _known().items() if digest and key.startswith(digest)]
    return next((path for path in reversed(fitting) if path.exists()), None)


def _known() -> dict[str, str]:
    try:
        read = json.loads((cache_folder() / "places.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in read.items() if isinstance(v, str)} if isinstance(read, dict) else {}
