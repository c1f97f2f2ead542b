"""One tensor of a file that is not read yet, and all of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Stored:
    """One tensor of a file. `read` may give a view into the mapped file: copy before `release`, which gives its memory back."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    release: Callable[[], None] = _nothing
    mapped: bool = False  # `read` takes it from the file each time, and nothing of it stays in memory

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def then(self, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> "Stored":
        """The same tensor after `change`, which gives it `shape`."""
        read = self.read
        return replace(self, shape=shape, read=lambda: change(read()))


@dataclass(frozen=True)
class Contents:
    """What stands in a file: its tensors by name, its metadata (safetensors only), and its plain numbers (pickles only: `global_step`)."""

    path: Path
    tensors: dict[str, Stored]
    metadata: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


def converted(stored: Stored, dtype: torch.dtype) -> Stored:
    """The same tensor in `dtype`; whole numbers stay what they are."""
    if not stored.dtype.is_floating_point or stored.dtype == dtype:
        return stored
    return replace(stored, dtype=dtype, read=lambda: stored.read().to(dtype))
