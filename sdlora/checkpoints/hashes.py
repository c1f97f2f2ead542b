"""sha256 of weight files, remembered in memory and in the user's cache folder while path, size and time of change stay the same."""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from sdlora import texts
from sdlora.errors import SdloraError

SHORT = 10  # digits of A1111's short hash
WORTH = 1 << 26  # bytes; less than this is hashed about as fast as looked up, and not written down
REMEMBERED = 1000  # files in the cache, the latest ones
BLOCK = 1 << 22

Stamp = tuple[str, int, int]  # path, time of change in ns, size in bytes


def cache_folder() -> Path:
    """Where this user's programs keep what can be made again; SDLORA_CACHE names another place."""
    if own := os.environ.get("SDLORA_CACHE"):
        return Path(own)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "sdlora" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sdlora"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdlora"


def sha256(files: Sequence[Path]) -> str:
    """sha256, 64 hexadecimal digits, over the contents of `files` one after the other."""
    stamps = []
    for path in files:
        try:
            stat = path.stat()
        except OSError as error:
            raise SdloraError(f"cannot read {path}: {error.strerror}; the base model has to stay where it is while it is used") from error
        stamps.append((str(path.resolve()), stat.st_mtime_ns, stat.st_size))
    return _remembered(tuple(stamps))


def combined(groups: Sequence[Sequence[Path]]) -> str:
    """`sha256` of one group of files; of several, the sha256 over their digests."""
    digests = [sha256(files) for files in groups]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def short(digest: str) -> str:
    """A1111's short form of a file's sha256."""
    return digest[:SHORT]


@lru_cache(maxsize=64)
def _remembered(stamps: tuple[Stamp, ...]) -> str:
    if sum(size for _, _, size in stamps) < WORTH:
        return _digest(stamps)
    key = "\n".join(f"{size} {time} {path}" for path, time, size in stamps)
    known = _known()
    if key in known:
        return known[key]
    digest = _digest(stamps)
    _write({**known, key: digest})
    return digest


def _digest(stamps: tuple[Stamp, ...]) -> str:
    digest = hashlib.sha256()
    for name, _, _ in stamps:
        with open(name, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _known() -> dict[str, str]:
    """What is written down; nothing where that cannot be read: it can all be computed again."""
    try:
        read = json.loads((cache_folder() / "hashes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _write(known: dict[str, str]) -> None:
    latest = dict(list(known.items())[-REMEMBERED:])
    try:
        texts.write(cache_folder() / "hashes.json", json.dumps(latest, indent=1, ensure_ascii=False))
    except (OSError, SdloraError):
        pass  # a home that takes no files costs time, nothing else
