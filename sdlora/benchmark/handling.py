"""The times of handling an adapter: reading its file, mapping it onto the model, putting it on, changing its strength, taking it off."""

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sdlora import files
from sdlora.adapter import Adapter
from sdlora.apply import fused, stacked
from sdlora.benchmark.clock import Stopwatch
from sdlora.benchmark.conditions import Subject
from sdlora.benchmark.names import CHANGE, CHANGES, LATE, OTHERS, READY, THEIR_CHANGE, THEIRS, THEIRS_LATE
from sdlora.matching import matched

NAMES = [f"other{i}" for i in range(OTHERS)]


@dataclass(frozen=True)
class Handling:
    """The time of one operation on an adapter, over its repeats."""

    operation: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(subject: Subject, prompt: str, repeats: int) -> tuple[Handling, ...]:
    """Every operation `repeats` times, ours and, where the reference is at hand, PEFT's, in turns; then PEFT's as the 25th.

    Ours as the 25th comes a moment after ours as the first, so that both are timed at one speed of the machine, and without PEFT's 24:
    those are no matter of ours.
    """
    with tempfile.TemporaryDirectory(prefix="sdlora-benchmark-") as folder:
        path = Path(folder) / "adapter.safetensors"
        files.save(subject.adapters[prompt][0], path)
        # the first of each warms up
        rounds = [{**ours(subject, path, prompt), **theirs(subject, prompt)} for _ in range(repeats + 1)][1:]
        with their_crowd(subject, prompt):
            late = [theirs_late(subject, prompt) for _ in range(repeats + 1)][1:]
    return tuple(Handling(name, tuple(r[name] for r in several)) for several in (rounds, late) for name in several[0])


def ours(subject: Subject, path: Path, prompt: str) -> dict[str, float]:
    """Seconds by operation, of one round."""
    modules, time, eta = subject.components.modules, Stopwatch(subject.components.device), subject.strength
    adapter = time("read the file", lambda: files.read(path))
    time("map it onto the model", lambda: matched(modules, subject.adapters[prompt][0]))
    adapter = time("read and map", lambda: files.load(path, modules))
    with time.around(stacked(modules, [(adapter, eta)]), "stacked") as stack:
        time(CHANGE, lambda: stack.set_strengths([eta / 2]))
    eight = [(one, eta / 8) for one in subject.adapters[prompt]]
    if len(eight) > 1:
        with stacked(modules, eight) as stack:
            time(
                CHANGES if len(eight) == 8 else f"change the strengths of {len(eight)}, stacked",
                lambda: stack.set_strengths([eta / 4] * len(eight)),
            )
    with time.around(fused(modules, [(adapter, eta)]), "fused"):
        pass
    put_on(subject, path, READY, time)
    with crowd(subject, prompt):
        put_on(subject, path, LATE, time)
    return time.seconds


def put_on(subject: Subject, path: Path, name: str, time: Stopwatch) -> None:
    """An adapter from its file onto the model, after one that is not counted."""
    modules = subject.components.modules
    for take in (lambda action: action(), lambda action: time(name, action)):
        with ExitStack() as block:
            take(lambda: block.enter_context(stacked(modules, [(files.load(path, modules), subject.strength)])))


def theirs(subject: Subject, prompt: str) -> dict[str, float]:
    """The same operations in stock diffusers, {} without PEFT."""
    if subject.stock is None or not subject.stock.peft:
        return {}
    time, stock, adapter = Stopwatch(subject.components.device), subject.stock, subject.adapters[prompt][0]
    stock.file(adapter)

    def load() -> None:
        stock.load(adapter, "one")
        stock.pipeline.set_adapters(["one"], [subject.strength])

    try:
        load()  # not counted, as ours
        stock.pipeline.unload_lora_weights()
        time(THEIRS, load)
        time(THEIR_CHANGE, lambda: stock.pipeline.set_adapters(["one"], [subject.strength / 2]))
    finally:
        time("unload_lora_weights (PEFT)", stock.pipeline.unload_lora_weights)
    return time.seconds


@contextmanager
def crowd(subject: Subject, prompt: str) -> Iterator[None]:
    """Inside, 24 adapters are on the model."""
    with stacked(subject.components.modules, [(other, subject.strength) for other in others(subject, prompt)]):
        yield


@contextmanager
def their_crowd(subject: Subject, prompt: str) -> Iterator[None]:
    """Inside, 24 adapters are in the reference."""
    stock = subject.stock
    with ExitStack() as block:
        if stock is not None and stock.peft:
            block.callback(stock.pipeline.unload_lora_weights)
            for name, other in zip(NAMES, others(subject, prompt), strict=True):
                stock.load(other, name)
        yield


def others(subject: Subject, prompt: str) -> list[Adapter]:
    adapters = subject.adapters[prompt]
    return [adapters[i % len(adapters)] for i in range(OTHERS)]


def theirs_late(subject: Subject, prompt: str) -> dict[str, float]:
    if subject.stock is None or not subject.stock.peft:
        return {}
    time, stock, adapter = Stopwatch(subject.components.device), subject.stock, subject.adapters[prompt][0]

    def load() -> None:
        stock.load(adapter, "late")
        stock.pipeline.set_adapters([*NAMES, "late"], [subject.strength] * (OTHERS + 1))

    time(THEIRS_LATE, load)
    stock.pipeline.delete_adapters("late")
    return time.seconds
