"""Benchmarks for the tests of the benchmark: a small one's settings, and results with invented times."""

from pathlib import Path

import torch

from sdlora.benchmark import BenchmarkConfig, gate, handling, measure, memory, result
from sdlora.benchmark.environment import record

OURS = ("base", "base again", "stacked", "fused")


def small(base: Path, output: Path) -> BenchmarkConfig:
    """Three blocks of one picture in two steps."""
    chosen = {"base": str(base), "adapter": "random:rank=4", "prompts": ("a cat face",), "steps": 2, "warmup": 1, "output": output}
    return BenchmarkConfig(**chosen, conditions=OURS, pairing="pictures", seconds={}, blocks=3, rounds=1, repeats=2, resamples=200)


def in_turns(base: Path, output: Path) -> BenchmarkConfig:
    """The same, with steps that take turns."""
    return small(base, output).model_copy(update={"pairing": "steps", "steps": 4})


def invented(settings: BenchmarkConfig, seconds: dict[str, list[float]]) -> result.Result:
    """A result with given times: {condition: [seconds of block 0, 1, …]}."""
    made = [
        measure.Sample(block, place, name, "a cat face", 1, times[block], times[block], 0, 0.1, (0.2, 0.3), 0.1, 0, 0.5, 2000.0, "00")
        for place, (name, times) in enumerate(seconds.items())
        for block in range(len(times))
    ]
    peaks = tuple(memory.Memory(name, 2**20 * (100 + i), 2**20 * 200, (1.0, 2.0, 3.0)) for i, name in enumerate(seconds))
    handled = (handling.Handling("read and map", (0.001, 0.003)),)
    facts = result.Facts("random:rank=4", 2, 100, 400)
    checks = (gate.Check("the adapter changes the image", "7 of 255 levels", True),)
    return result.Result(settings, record(torch.device("cpu")), facts, checks, handled, peaks, tuple(made), True)
