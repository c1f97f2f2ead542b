"""Sizes on a disk in words: 2GB, 500 MiB."""

import re

from sdlora.errors import SdloraError

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def size(text: str, what: str = "--to") -> int:
    """2GB -> 2000000000, 2GiB -> 2147483648, 0 -> 0. SdloraError for what is no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b|b)?", text.strip(), re.IGNORECASE)
    if not match or (match[2] is None and float(match[1]) > 0):
        raise SdloraError(f"{what} is {text!r}; write a number and a unit, such as 2GB or 500MB, or 0")
    return int(float(match[1]) * UNITS[(match[2] or "B").upper()])


def readable(count: int) -> str:
    unit = next(name for name in ("TB", "GB", "MB", "KB", "B") if count >= UNITS[name] or name == "B")
    return f"{count / UNITS[unit]:.{0 if unit == 'B' else 1}f} {unit}"
