"""Peak memory and duration of the first drawing under each condition: of PyTorch's allocator on CUDA, and of the process (Linux)."""

import ctypes
import gc
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from sdlora import hardware
from sdlora.benchmark.clock import timing
from sdlora.benchmark.conditions import Draw, Subject, active


@dataclass(frozen=True)
class Memory:
    """Peaks in bytes, None where the system does not tell, for no figure is better than a wrong one; medians of the rounds."""

    condition: str
    peak: int | None  # of the device's allocator on CUDA, else of the process
    host: int | None  # of the process, libraries included
    first: tuple[float, ...]  # seconds from the switch to the condition to the end of its first drawing


def measure(subject: Subject, conditions: Sequence[str], prompt: str, work: Callable[[Draw], object], rounds: int) -> tuple[Memory, ...]:
    """The peaks while the adapter is put on and `work` runs, and how long that takes.

    Not taken during the timed samples: what the allocator has kept from other conditions has to be given back before, and
    that would slow them down. For the same reason the time is that of a first picture.
    """
    found = [{name: once(subject, name, prompt, work) for name in conditions} for _ in range(rounds)]
    return tuple(_summed(name, [r[name] for r in found]) for name in conditions)


def once(subject: Subject, condition: str, prompt: str, work: Callable[[Draw], object]) -> Memory:
    device, host = subject.components.device, torch.device("cpu")
    release()
    known = {d.type: hardware.forget_peak(d) for d in (device, host)}
    with ExitStack() as block:
        with timing(device) as seconds:
            work(block.enter_context(active(subject, condition, prompt)).draw)
        peaks = {d.type: hardware.peak(d) if known[d.type] else None for d in (device, host)}
    return Memory(condition, peaks[device.type], peaks["cpu"], (seconds[0],))


def _summed(condition: str, rounds: list[Memory]) -> Memory:
    peaks, hosts = ([p for p in values if p is not None] for values in ([r.peak for r in rounds], [r.host for r in rounds]))
    return Memory(condition, median(peaks), median(hosts), tuple(r.first[0] for r in rounds))


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
