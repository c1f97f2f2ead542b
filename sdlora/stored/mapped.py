""".safetensors files, memory-mapped to read and tensor after tensor to write."""

import json
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdlora.atomic import replacing
from sdlora.errors import SdloraError
from sdlora.stored.tensor import DTYPES, NAMES, Contents, Stored

METADATA = "__metadata__"


def contents(path: Path) -> Contents:
    """Names, shapes and header of a file that begins like safetensors; SdloraError where it is cut off or its header damaged."""
    entries, start = header(path)
    metadata = entries.pop(METADATA, None) or {}
    if not isinstance(metadata, dict):
        raise SdloraError(f"{path}: {METADATA} of its header is no table; fetch the file again")
    size = path.stat().st_size
    with open(path, "rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # private: nothing can be written through to the file
    tensors, spans = {}, []
    for name, entry in entries.items():
        dtype, shape, begin, end = _entry(path, name, entry)
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise SdloraError(f"{path}: {name} has {end - begin} bytes, and its shape {list(shape)} does not; fetch the file again")
        if start + end > size:
            raise SdloraError(f"{path} is cut off: {name} ends at byte {start + end:,}, the file at {size:,}; fetch it again")
        tensors[name] = _tensor(whole, dtype, shape, start + begin)
        spans.append((begin, end, name))
    _whole(path, spans, size - start)
    return Contents(path, tensors, {str(key): str(value) for key, value in metadata.items()})


def header(path: Path) -> tuple[dict[str, Any], int]:
    """(the header, where the data begin in bytes)."""
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        try:
            read = json.loads(file.read(length).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise SdloraError(f"{path} is no safetensors file (its header is not JSON); fetch it again") from error
    if not isinstance(read, dict):
        raise SdloraError(f"{path} is no safetensors file (its header is not a table); fetch it again")
    return read, 8 + length


def _entry(path: Path, name: str, entry: Any) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    """(type, shape, first byte, byte behind the last) of one entry of the header."""
    try:
        dtype, shape, (begin, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, begin, end)
        whole = {int}.issuperset(map(type, numbers)) and min(numbers) >= 0
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise SdloraError(f"{path}: the header's entry of {name} is damaged or of an unknown type: {entry}")
    return dtype, shape, begin, end


def _whole(path: Path, spans: list[tuple[int, int, str]], size: int) -> None:
    """SdloraError unless the tensors follow one another through all `size` bytes, as the format asks."""
    last, before = 0, "the header"
    for begin, end, name in sorted(span for span in spans if span[0] < span[1]):
        if begin != last:
            found = f"by its header {name} begins at byte {begin:,}, and {before} ends at {last:,}"
            raise SdloraError(f"{path} is damaged: {found}; fetch it again")
        last, before = end, name
    if last != size:
        raise SdloraError(f"{path} is damaged: its tensors end at byte {last:,} of {size:,}; fetch it again")


def _tensor(whole: mmap.mmap, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> Stored:
    count = math.prod(shape)

    def read() -> Tensor:
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(whole, dtype=dtype, count=count, offset=offset).view(shape)

    def release() -> None:
        begin = offset // mmap.PAGESIZE * mmap.PAGESIZE
        whole.madvise(mmap.MADV_DONTNEED, begin, offset + count * dtype.itemsize - begin)

    given_back = {"release": release} if hasattr(mmap, "MADV_DONTNEED") and count else {}
    return Stored(shape, dtype, read, mapped=True, **given_back)


def write(path: str | Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str] | None = None) -> None:
    """A .safetensors with `tensors`, one read after the other, so that memory holds one at a time."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # so every tensor is aligned, as safetensors does
    entries: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
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
