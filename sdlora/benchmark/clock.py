"""Seconds of a piece of work, with the device's queue empty before and after and no garbage collection in between."""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter_ns
from typing import Any

import torch


@contextmanager
def timing(device: torch.device) -> Iterator[list[float]]:
    """Appends the seconds of the body."""
    seconds: list[float] = []
    with uncollected():
        synchronise(device)
        start = perf_counter_ns()
        yield seconds
        synchronise(device)
        seconds.append((perf_counter_ns() - start) / 1e9)


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected inside."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Calls a function and keeps its seconds under a name."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        with timing(self.device) as seconds:
            result = work()
        self.seconds[name] = seconds[0]
        return result

    @contextmanager
    def around(self, context: AbstractContextManager[Any], how: str) -> Iterator[Any]:
        """`context`, entered and left under the clock."""
        value = self(f"put on, {how}", context.__enter__)
        try:
            yield value
        finally:
            self(f"take off, {how}", lambda: context.__exit__(None, None, None))
