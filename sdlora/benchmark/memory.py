"""Peak memory of one drawing under each condition: PyTorch's allocator on CUDA, else the resident set of the process (Linux)."""

import ctypes
import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sdlora.benchmark.conditions import active
from sdlora.benchmark.gate import Weighted
from sdlora.models import Components

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ROUNDS = 3


@dataclass(frozen=True)
class Memory:
    """Bytes; None where the system does not tell, for no figure is better than a wrong one."""

    condition: str
    peak: int | None


def measure(components: Components, weighted: Weighted, conditions: Sequence[str], work: Callable[[], object]) -> tuple[Memory, ...]:
    """The peak while the adapter is put on and `work` runs, median of three rounds.

    Not taken during the timed samples: what the allocator has kept from other conditions has to be given back before, and
    that would slow them down.
    """
    rounds = [{name: peak_of(components, name, weighted, work) for name in conditions} for _ in range(ROUNDS)]
    peaks = {name: [r[name] for r in rounds] for name in conditions}
    return tuple(Memory(name, median([p for p in peaks[name] if p is not None])) for name in conditions)


def peak_of(components: Components, condition: str, weighted: Weighted, work: Callable[[], object]) -> int | None:
    release()
    if not reset(components.device):
        return None
    with active(components, condition, weighted):
        work()
        return peak(components.device)


def median(peaks: list[int]) -> int | None:
    return round(statistics.median(peaks)) if peaks else None


def release() -> None:
    """Gives freed memory back to the system, as far as that is possible."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass  # not glibc: the peaks are then upper bounds


def reset(device: torch.device) -> bool:
    """Forgets the peak so far; False where the system cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR.write_text("5")  # man 5 proc: resets VmHWM
    except OSError:
        return False
    return True


def peak(device: torch.device) -> int | None:
    """Bytes since the last reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
