"""The times of handling an adapter: reading its file, mapping it onto the model, putting it on, changing its strength, taking it off."""

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sdlora import files
from sdlora.apply import fused, stacked
from sdlora.benchmark.clock import Stopwatch
from sdlora.benchmark.conditions import Subject
from sdlora.matching import matched

OTHERS = 24  # adapters that are loaded already when the 25th comes
READY, LATE = "read, map and put on, stacked", f"the same with {OTHERS} others on the model"
THEIRS, THEIRS_LATE = "load_lora_weights and set_adapters (PEFT)", f"the same with {OTHERS} others loaded (PEFT)"


@dataclass(frozen=True)
class Handling:
    """The time of one operation on an adapter, over its repeats."""

    operation: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(subject: Subject, prompt: str, repeats: int) -> tuple[Handling, ...]:
    """Every operation `repeats` times, ours and, where the reference is at hand, PEFT's, in turns."""
    with tempfile.TemporaryDirectory(prefix="sdlora-benchmark-") as folder:
        path = Path(folder) / "adapter.safetensors"
        files.save(subject.adapters[prompt][0], path)
        rounds = [{**ours(subject, path, prompt), **theirs(subject, prompt)} for _ in range(repeats + 1)][1:]  # the first one warms up
        many = {**crowded(subject, path, prompt, repeats), **crowded_peft(subject, prompt, repeats)}
    alone = [Handling(name, tuple(r[name] for r in rounds)) for name in rounds[0]]
    return (*alone, *(Handling(name, seconds) for name, seconds in many.items()))


def ours(subject: Subject, path: Path, prompt: str) -> dict[str, float]:
    """Seconds by operation, of one round."""
    modules, time, eta = subject.components.modules, Stopwatch(subject.components.device), subject.strength
    adapter = time("read the file", lambda: files.read(path))
    time("map it onto the model", lambda: matched(modules, subject.adapters[prompt][0]))
    adapter = time("read and map", lambda: files.load(path, modules))
    with time.around(stacked(modules, [(adapter, eta)]), "stacked") as stack:
        time("change the strength, stacked", lambda: stack.set_strengths([eta / 2]))
    eight = [(one, eta / 8) for one in subject.adapters[prompt]]
    if len(eight) > 1:
        with stacked(modules, eight) as stack:
            time(f"change the strengths of {len(eight)}, stacked", lambda: stack.set_strengths([eta / 4] * len(eight)))
    with time.around(fused(modules, [(adapter, eta)]), "fused"):
        pass
    with ExitStack() as block:
        time(READY, lambda: block.enter_context(stacked(modules, [(files.load(path, modules), eta)])))
    return time.seconds


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
        time(THEIRS, load)
        time("set_adapters (PEFT)", lambda: stock.pipeline.set_adapters(["one"], [subject.strength / 2]))
    finally:
        time("unload_lora_weights (PEFT)", stock.pipeline.unload_lora_weights)
    return time.seconds


def crowded(subject: Subject, path: Path, prompt: str, repeats: int) -> dict[str, tuple[float, ...]]:
    """The 25th adapter."""
    modules, time, eta, seconds = subject.components.modules, Stopwatch(subject.components.device), subject.strength, []
    others = [(subject.adapters[prompt][i % len(subject.adapters[prompt])], eta) for i in range(OTHERS)]
    with stacked(modules, others):
        for _ in range(repeats):
            with ExitStack() as block:
                time(LATE, lambda block=block: block.enter_context(stacked(modules, [(files.load(path, modules), eta)])))  # type: ignore[misc]
            seconds.append(time.seconds[LATE])
    return {LATE: tuple(seconds)}


def crowded_peft(subject: Subject, prompt: str, repeats: int) -> dict[str, tuple[float, ...]]:
    if subject.stock is None or not subject.stock.peft:
        return {}
    time, stock, seconds = Stopwatch(subject.components.device), subject.stock, []
    adapters = subject.adapters[prompt]
    names = [f"other{i}" for i in range(OTHERS)]
    for i, name in enumerate(names):
        stock.load(adapters[i % len(adapters)], name)

    def load() -> None:
        stock.load(adapters[0], "late")
        stock.pipeline.set_adapters([*names, "late"], [subject.strength] * (OTHERS + 1))

    try:
        for _ in range(repeats):
            time(THEIRS_LATE, load)
            seconds.append(time.seconds[THEIRS_LATE])
            stock.pipeline.delete_adapters("late")
    finally:
        stock.pipeline.unload_lora_weights()
    return {THEIRS_LATE: tuple(seconds)}
