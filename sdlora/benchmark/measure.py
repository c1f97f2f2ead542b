"""Times and peak memory of drawing under every condition, in paired blocks; and of putting an adapter on and off."""

import gc
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch
from PIL import Image

from sdlora import files
from sdlora.adapter import Adapter
from sdlora.apply import fused, stacked
from sdlora.benchmark import environment
from sdlora.benchmark.conditions import active
from sdlora.benchmark.config import BenchmarkConfig
from sdlora.benchmark.gate import Weighted, image_hash
from sdlora.benchmark.plan import Block
from sdlora.generation import Request, generate
from sdlora.models import Components


@dataclass(frozen=True)
class Sample:
    """One timed drawing: text encoding, all steps, decoding; `images` pictures in one batch."""

    block: int
    place: int  # in the block's order, from 0
    condition: str
    prompt: str
    seed: int
    seconds: float
    load: float | None  # of the machine when the sample ended
    image: str  # sha256 of the first picture


@dataclass(frozen=True)
class Handling:
    """The time of one operation on an adapter, over its repeats."""

    operation: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def requests(config: BenchmarkConfig, prompt: str, seed: int) -> list[Request]:
    first = Request(prompt, seed=seed, steps=config.steps, guidance=config.guidance, width=config.width, height=config.height)
    return [replace(first, seed=seed + i) for i in range(config.images)]


def short(wanted: Sequence[Request], config: BenchmarkConfig) -> list[Request]:
    """The same requests with as few steps as a warm-up needs."""
    return [replace(request, steps=min(config.warmup, config.steps)) for request in wanted]


def draw(components: Components, wanted: Sequence[Request]) -> list[Image.Image]:
    """The pictures of `wanted` in one batch, on whatever adapter is on the model now."""
    return [picture.image for picture in generate(components, wanted, batch=len(wanted))]


def timed(components: Components, block: Block, place: int, weighted: Weighted, config: BenchmarkConfig) -> Sample:
    """One sample: switch to the condition, warm up, draw under the clock."""
    name, device, wanted = block.order[place], components.device, requests(config, block.prompt, block.seed)
    with active(components, name, weighted):
        draw(components, short(wanted, config))
        with clock(device) as seconds:
            images = draw(components, wanted)
    return Sample(block.index, place, name, block.prompt, block.seed, seconds[0], environment.load(), image_hash(images[0]))


def block_samples(components: Components, block: Block, weighted: Weighted, config: BenchmarkConfig) -> tuple[Sample, ...]:
    return tuple(timed(components, block, place, weighted, config) for place in range(len(block.order)))


@contextmanager
def clock(device: torch.device) -> Iterator[list[float]]:
    """Appends the seconds of the body, the device's queue empty before and after, no garbage collection in between."""
    seconds: list[float] = []
    gc.collect()
    gc.disable()
    try:
        synchronise(device)
        start = perf_counter_ns()
        yield seconds
        synchronise(device)
        seconds.append((perf_counter_ns() - start) / 1e9)
    finally:
        gc.enable()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def handling(components: Components, adapter: Adapter, strength: float, repeats: int) -> tuple[Handling, ...]:
    """Reading a file and mapping its keys, putting it on, changing its strength, taking it off; every operation `repeats` times."""
    with tempfile.TemporaryDirectory(prefix="sdlora-benchmark-") as folder:
        path = Path(folder) / "adapter.safetensors"
        files.save(adapter, path)
        rounds = [once(components, path, strength) for _ in range(repeats + 1)][1:]  # the first one warms up
    return tuple(Handling(name, tuple(r[name] for r in rounds)) for name in rounds[0])


def once(components: Components, path: Path, strength: float) -> dict[str, float]:
    """Seconds by operation, of one round."""
    modules, time = components.modules, Stopwatch(components.device)
    adapter = time("load the file", lambda: files.load(path, modules))
    with put_on(stacked(modules, [(adapter, strength)]), "stacked", time) as stack:
        time("change the strength, stacked", lambda: stack.set_strengths([strength / 2]))
    with put_on(fused(modules, [(adapter, strength)]), "fused", time):
        pass
    return time.seconds


class Stopwatch:
    """Calls a function and keeps its seconds under a name."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        with clock(self.device) as seconds:
            result = work()
        self.seconds[name] = seconds[0]
        return result


@contextmanager
def put_on(context: AbstractContextManager[Any], how: str, time: Stopwatch) -> Iterator[Any]:
    """`context`, entered and left under the clock."""
    value = time(f"put on, {how}", context.__enter__)
    try:
        yield value
    finally:
        time(f"take off, {how}", lambda: context.__exit__(None, None, None))
