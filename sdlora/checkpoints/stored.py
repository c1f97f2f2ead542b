"""Tensors in files, known by name, shape and precision before anything is read: safetensors memory-mapped, and pickles of tensors."""

import json
import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdlora.atomic import replacing
from sdlora.errors import SdloraError

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
LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


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
    """A file: its tensors by name, the header's strings (safetensors only), and its plain numbers (pickles only: `global_step`)."""

    path: Path
    tensors: dict[str, Stored]
    metadata: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


def contents(path: Path) -> Contents:
    """What stands in `path`, .safetensors or a pickle of tensors; SdloraError for anything else or a damaged file."""
    match path.suffix.lower():
        case ".safetensors":
            return _safetensors(path)
        case suffix if suffix in PICKLES:
            return _pickle(path)
        case _:
            raise SdloraError(f"{path} is neither .safetensors nor .ckpt; convert it first")


def header(path: Path) -> tuple[dict[str, Any], int]:
    """(the header of a .safetensors, where its data begin in bytes); SdloraError where it is cut off or damaged."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= length <= min(LONGEST_HEADER, size - 8):
                raise SdloraError(f"{path} ({size:,} bytes) is cut off or not a safetensors file; fetch it again")
            read = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise SdloraError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SdloraError(f"{path} is no safetensors file (its header is not JSON); fetch it again") from error
    if not isinstance(read, dict):
        raise SdloraError(f"{path} is no safetensors file (its header is not a table); fetch it again")
    return read, 8 + length


def _safetensors(path: Path) -> Contents:
    entries, start = header(path)
    metadata = {str(k): str(v) for k, v in (entries.pop("__metadata__", None) or {}).items()}
    size = path.stat().st_size
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # private: nothing can be written through to the file
    tensors = {}
    for name, entry in entries.items():
        try:
            dtype, shape, (begin, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise SdloraError(f"{path}: the header's entry of {name} is damaged or of an unknown type: {entry}") from error
        if end - begin != math.prod(shape) * dtype.itemsize or begin < 0:
            raise SdloraError(f"{path}: {name} has {end - begin} bytes, and its shape {list(shape)} does not; fetch the file again")
        if start + end > size:
            raise SdloraError(f"{path} is cut off: {name} ends at byte {start + end:,}, the file at {size:,}; fetch it again")
        tensors[name] = _mapped(mapped, dtype, shape, start + begin)
    return Contents(path, tensors, metadata)


def _mapped(mapped: mmap.mmap, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> Stored:
    count = math.prod(shape)

    def read() -> Tensor:
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(mapped, dtype=torch.uint8, count=count * dtype.itemsize, offset=offset).view(dtype).view(shape)

    def release() -> None:
        begin = offset // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, begin, offset + count * dtype.itemsize - begin)

    return Stored(shape, dtype, read, release if hasattr(mmap, "MADV_DONTNEED") and count else _nothing, mapped=True)


def _pickle(path: Path) -> Contents:
    loaded = _unpickled(path)
    if not isinstance(loaded, Mapping):
        raise SdloraError(f"{path} holds a {type(loaded).__name__}, not named tensors; a checkpoint is a table of tensors")
    numbers = {str(k): float(v) for k, v in loaded.items() if isinstance(v, int | float)}
    state = loaded.get("state_dict", loaded)
    tensors = {
        str(name): Stored(tuple(value.shape), value.dtype, lambda value=value: value)  # type: ignore[misc]
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise SdloraError(f"{path} holds no tensors")
    return Contents(path, tensors, {}, numbers)


def _unpickled(path: Path) -> Any:
    """torch.load, tensors only: a pickle can run any program, so whatever is more than that is refused."""
    import pickle

    try:
        path.open("rb").close()
    except OSError as error:
        raise SdloraError(f"cannot read {path}: {error.strerror}") from error
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files from before torch 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SdloraError(
            f"{path} holds more than tensors (a pickle can run programs, so only tensors are read), or it is damaged; "
            "convert it to .safetensors with a tool that you trust"
        ) from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise SdloraError(f"{path} is damaged ({(str(error).strip() or type(error).__name__).splitlines()[0]}); fetch it again") from error


def write(path: str | Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str] | None = None) -> None:
    """A .safetensors with `tensors`, one read after the other, so that memory holds one at a time."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # so every tensor is aligned, as safetensors does
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].count * tensors[name].dtype.itemsize
        entries[name] = {"dtype": NAMES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            stored = tensors[name]
            file.write(stored.read().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            stored.release()


def converted(stored: Stored, dtype: torch.dtype) -> Stored:
    """The same tensor in `dtype`; whole numbers stay what they are."""
    if not stored.dtype.is_floating_point or stored.dtype == dtype:
        return stored
    return replace(stored, dtype=dtype, read=lambda: stored.read().to(dtype))
