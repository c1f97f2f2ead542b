"""Tensors in files, known by name, shape and precision before anything is read: safetensors memory-mapped, and pickles of tensors."""

from pathlib import Path

from sdlora.errors import SdloraError
from sdlora.stored import mapped, pickles, sniff
from sdlora.stored.mapped import write
from sdlora.stored.tensor import NAMES, Contents, Stored, converted

__all__ = ["NAMES", "Contents", "Stored", "contents", "converted", "write"]


def contents(path: Path) -> Contents:
    """What stands in `path`, whose first bytes say what it is; SdloraError for a damaged file and for anything but named tensors.

    A pickle has to be called one (.ckpt, .pt, .pth, .bin): who gives a .safetensors expects that no pickle is opened.
    """
    kind = sniff.kind(path)
    if kind == sniff.SAFETENSORS:
        return mapped.contents(path)
    if kind == sniff.PICKLE and path.suffix.lower() in pickles.SUFFIXES:
        return pickles.contents(path)
    if kind == sniff.PICKLE:
        raise SdloraError(f"{path} is a pickle (PyTorch's format), whatever its name says; if it is what you want, call it .ckpt")
    raise SdloraError(f"{path} {kind}")
