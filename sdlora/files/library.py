"""Loaded adapters, kept while a budget of bytes allows: the ones that were used last stay, those in use always."""

import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sdlora.adapter import Adapter, tensors
from sdlora.errors import SdloraError
from sdlora.files.container import located
from sdlora.files.reading import load

UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")

Identity = tuple[Any, ...]  # of a file as it stands: its place on disk, when it was changed, its size


@dataclass(eq=False)
class Volume:
    adapter: Adapter
    models: tuple[weakref.ref[nn.Module], ...]  # for which it was read
    bytes: int
    users: int = 0


class Library:
    """Adapters by file. `budget` in bytes; None is no limit.

    A file that has changed is another one. An adapter in use (`using`) is pinned: it stays, even beyond the budget, and what does not
    fit any more is dropped when nobody uses it. Several threads may share a library: its own data are locked, and files are read one at
    a time. What a model carries is another matter: one thread at a time may draw with one model.
    """

    def __init__(self, budget: int | None = None):
        if budget is not None and budget < 0:
            raise SdloraError(f"the budget for adapters is {budget} bytes; it has to be at least 0")
        self.budget = budget
        self._volumes: OrderedDict[Identity, Volume] = OrderedDict()  # the one used last comes last
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._volumes)

    @property
    def bytes(self) -> int:
        """What all tensors in memory take."""
        with self._lock:
            return sum(volume.bytes for volume in self._volumes.values())

    def load(self, path: str | Path, modules: Mapping[str, nn.Module]) -> Adapter:
        """files.load, or what it gave for the same file and model before."""
        with self.using([path], modules) as (adapter,):
            return adapter

    @contextmanager
    def using(self, paths: Sequence[str | Path], modules: Mapping[str, nn.Module]) -> Iterator[list[Adapter]]:
        """The adapters in `paths`, pinned inside the block."""
        pinned: list[Volume] = []
        try:
            for path in paths:
                with self._lock:
                    pinned.append(self._volume(Path(path), modules))
                    pinned[-1].users += 1
                    self._fit()
            yield [volume.adapter for volume in pinned]
        finally:
            with self._lock:
                for volume in pinned:
                    volume.users -= 1
                self._fit()

    def clear(self) -> None:
        """Let go of everything that is not in use."""
        with self._lock:
            for identity in [key for key, volume in self._volumes.items() if not volume.users]:
                del self._volumes[identity]

    def _volume(self, path: Path, modules: Mapping[str, nn.Module]) -> Volume:
        identity = (*_identity(path), *modules)
        found = self._volumes.get(identity)
        if found is None or any(ref() is not module for ref, module in zip(found.models, modules.values(), strict=True)):
            adapter = load(path, modules)
            size = sum(t.nbytes for update in adapter.layers.values() for t in tensors(update).values())
            found = self._volumes[identity] = Volume(adapter, tuple(weakref.ref(module) for module in modules.values()), size)
        self._volumes.move_to_end(identity)
        return found

    def _fit(self) -> None:
        if self.budget is None:
            return
        excess = self.bytes - self.budget
        for identity, volume in list(self._volumes.items()):
            if excess > 0 and not volume.users:
                del self._volumes[identity]
                excess -= volume.bytes


def _identity(path: Path) -> Identity:
    try:
        file = located(path)
        stat = file.stat()
    except (OSError, SdloraError):
        return (str(path),)  # `load` says what is wrong
    return str(file.resolve()), stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


def parse_bytes(text: str, option: str) -> int:
    """ "2GB" -> 2,000,000,000; kB, MB, GB, KiB, MiB, GiB, or bytes."""
    match = SIZE.fullmatch(text.strip().lower())
    if not match or match[2] not in UNITS:
        raise SdloraError(f"{option} {text!r} is no amount of memory; write 2GB, 500MB or 1.5GiB")
    return int(float(match[1]) * UNITS[match[2]])
