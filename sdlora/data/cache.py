"""What was encoded once is kept under a name that stands for everything it depends on, so that it cannot be stale.

On disk an entry is FOLDER/v3/KIND/ab/abcdef….safetensors, the name being the sha256 of the facts it depends on. Reading one sets its
time of change, so that the entries that nobody has used for long can be told.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdlora import atomic
from sdlora.checkpoints.hashes import cache_folder
from sdlora.data.settings import MEMORY, SHARED
from sdlora.errors import SdloraError

VERSION = 3  # of how pictures and captions are prepared; a new one leaves all old entries unused
DAY = 86400.0
HOUR = 3600.0
LEFTOVER = DAY  # seconds after which an unfinished file is one that nobody writes to any more
SUFFIX = ".safetensors"
OURS = re.compile(r"v\d+/[^/]+/([0-9a-f]{2})/(?:\1[0-9a-f]{62}|\.\1[0-9a-f]{62}-\w+\.tmp)\.safetensors")  # whole, or unfinished


def folder_of(where: str) -> Path | None:
    """The folder behind the setting `cache`; None for memory."""
    if where == MEMORY:
        return None
    return cache_folder() / "encoded" if where == SHARED else Path(where).expanduser()


class Cache:
    """Tensors by content: in `folder`, one safetensors file each and written atomically, or in memory where that is None or takes no
    files: then only time is lost."""

    def __init__(self, folder: Path | None = None, limit: int | None = None):
        self.folder = folder
        self.limit = limit  # bytes that the folder may hold once `trim` is called
        self.made = 0  # how many were computed here and not found
        self.used: set[Path] = set()  # what was asked for
        self.problem: str | None = None  # why the folder takes no files, once it has refused one
        self._memory: dict[str, dict[str, Tensor]] = {}

    def get(self, facts: tuple[object, ...], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors that `make` gives, by name, computed only if none are kept for these facts, of which the first is their kind."""
        key = hashlib.sha256(repr((VERSION, *facts)).encode()).hexdigest()
        if self.folder is not None and key not in self._memory:
            return self._stored(key, self.folder / f"v{VERSION}" / str(facts[0]) / key[:2] / f"{key}{SUFFIX}", make)
        if key not in self._memory:
            self._memory[key] = self._compute(make)
        return self._memory[key]

    def trim(self, now: float | None = None) -> int:
        """Delete what was longest unused, until the folder is within its limit; how many bytes that freed.

        What was asked for here stays, and so does what anybody has used within the hour: another training may be encoding, and looks
        at its entries twice. Later it has them in memory, so that it never misses one.
        """
        if self.folder is None or self.limit is None or not self.made:
            return 0
        now = time.time() if now is None else now
        kept = list(entries(self.folder))
        if sum(one.bytes for one in kept) <= self.limit:
            return 0  # also of another version, which may be in use beside this one
        room = self.limit - sum(one.bytes for one in kept if self._needed(one, now))
        free = [one for one in kept if not self._needed(one, now)]
        return remove(outdated(free, None, max(0, room), now))

    def _needed(self, one: "Kept", now: float) -> bool:
        return one.path in self.used or now - one.used < HOUR

    def _stored(self, key: str, path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        self.used.add(path)
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError):  # not there, or damaged from outside: computed anew
            tensors = self._compute(make)
            self._write(key, path, tensors)
        else:
            with suppress(OSError):  # another's folder
                os.utime(path)
        return tensors

    def _write(self, key: str, path: Path, tensors: dict[str, Tensor]) -> None:
        for last in (False, True):  # another run may take an empty folder away while a file is put there
            try:
                with atomic.replacing(path) as temporary:
                    save_file(tensors, temporary)
                return
            except (OSError, SafetensorError, SdloraError) as error:
                if last or path.parent.exists():
                    self.problem = str(error).partition("; ")[0]
                    self._memory[key] = tensors
                    return

    def _compute(self, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        self.made += 1
        return {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}


@dataclass(frozen=True)
class Kept:
    """An entry on disk."""

    path: Path
    kind: str  # "latents", "text", …; "unused": of another version, or an unfinished file
    bytes: int
    used: float  # when it was last used, seconds since 1970


def entries(folder: Path) -> Iterator[Kept]:
    """Everything in a cache folder that sdlora put there; the folder may be one with other things in it."""
    for path in sorted(folder.glob("v*/*/??/*")):
        if not OURS.fullmatch(path.relative_to(folder).as_posix()):
            continue
        version, kind, _, name = path.relative_to(folder).parts
        try:
            status = path.stat()
        except OSError:
            continue  # another process has taken it away
        whole = version == f"v{VERSION}" and name.endswith(SUFFIX) and not name.startswith(".")
        yield Kept(path, kind if whole else "unused", status.st_size, status.st_mtime)


def outdated(kept: list[Kept], older: float | None, limit: int | None, now: float | None = None) -> list[Kept]:
    """What pruning takes: all that is unused; what was last used more than `older` seconds ago; and the longest unused, until what
    remains has at most `limit` bytes."""
    now = time.time() if now is None else now
    leftover = [one for one in kept if one.kind == "unused" and (not one.path.name.startswith(".") or now - one.used > LEFTOVER)]
    alive = sorted((one for one in kept if one.kind != "unused"), key=lambda one: one.used)
    gone = [one for one in alive if older is not None and now - one.used > older]
    rest = alive[len(gone) :]
    size = sum(one.bytes for one in rest)
    for one in rest:
        if limit is None or size <= limit:
            break
        gone.append(one)
        size -= one.bytes
    return leftover + gone


def remove(kept: list[Kept]) -> int:
    """Delete the entries, and the folders that are empty then; how many bytes that frees."""
    freed = 0
    for one in kept:
        with suppress(OSError):  # gone already, or not ours to delete
            one.path.unlink()
            freed += one.bytes
    for folder in sorted({parent for one in kept for parent in list(one.path.parents)[:3]}, key=lambda path: -len(path.parts)):
        with suppress(OSError):  # not empty
            folder.rmdir()
    return freed
