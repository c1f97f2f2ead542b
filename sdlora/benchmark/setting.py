"""What stays the same while a benchmark runs: PyTorch's threads, and a heap that the garbage collector need not look through."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def settled_heap() -> Iterator[None]:
    """What lives already is no longer looked through by the garbage collector: a collection before every sample costs nothing."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch's threads for the time of the benchmark; 0 leaves them."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
