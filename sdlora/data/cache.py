"""What was encoded once is kept under a name that stands for everything it depends on, so that it cannot be stale."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdlora import atomic

VERSION = 2  # of how pictures and captions are prepared; a new one leaves all old entries unused


class Cache:
    """Tensors by content: in `folder`, one safetensors file each and written atomically, or in memory where that is None."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self.made = 0  # how many were computed here and not found
        self._memory: dict[str, dict[str, Tensor]] = {}

    def get(self, facts: tuple[object, ...], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors that `make` gives, by name, computed only if none are kept for these facts."""
        key = hashlib.sha256(repr((VERSION, *facts)).encode()).hexdigest()
        if key not in self._memory:
            self._memory[key] = self._compute(make) if self.folder is None else self._stored(self.folder / f"{key}.safetensors", make)
        return self._memory[key]

    def _stored(self, path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        if path.exists():
            try:
                return load_file(path)
            except (SafetensorError, OSError):
                pass  # damaged from outside: computed anew
        tensors = self._compute(make)
        with atomic.replacing(path) as temporary:
            save_file(tensors, temporary)
        return tensors

    def _compute(self, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        self.made += 1
        return {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}
