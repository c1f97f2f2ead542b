"""The course of a benchmark: gate, handling, paired blocks, report. What has been measured survives an interruption."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sdlora import generation
from sdlora.adapter import Adapter, tensors
from sdlora.atomic import replacing, writable_folder
from sdlora.benchmark import adapters, environment, gate, measure, memory, plan, plot, report, result
from sdlora.benchmark.conditions import CONDITIONS
from sdlora.benchmark.config import BenchmarkConfig
from sdlora.benchmark.result import Analysis, Result
from sdlora.models import Components

Progress = Callable[[int, int, str], None]  # done, of how many, what now


@dataclass(frozen=True)
class Outcome:
    """A finished or interrupted benchmark and its files; without two whole blocks there is no plot."""

    result: Result
    analysis: Analysis | None
    json: Path
    markdown: Path
    plot: Path | None


def run(config: BenchmarkConfig, components: Components | None = None, progress: Progress | None = None) -> Outcome:
    """Measures and writes benchmark.json, .md and .png to `config.output`.

    SdloraError if the correctness gate fails: then nothing is measured. Ctrl-C ends the measuring, not the report.
    """
    say = progress or (lambda done, total, words: None)
    folder = writable_folder(config.output)
    with threads(config.threads):
        say(0, config.blocks, "loading")
        components = components or generation.load(config.base, config.device, config.precision)
        adapter = adapters.obtain(config.adapter, components)
        with settled_heap():
            say(0, config.blocks, "checking")
            prints = gate.fingerprint(components)
            found = prepare(config, components, adapter)
            say(0, config.blocks, "measuring")
            found = blocks(found, components, [(adapter, config.strength)], folder / "benchmark.json", say)
            last = gate.passed((untouched(components, prints),))
        whole = report.blocks(found) == config.blocks
        found = replace(found, gate=(*found.gate, *last), complete=whole)
    return written(found, folder)


def prepare(config: BenchmarkConfig, components: Components, adapter: Adapter) -> Result:
    """Everything but the samples: the gate, then peak memory and the times of handling an adapter."""
    wanted, weighted = measure.requests(config, config.prompts[0], config.seeds[0]), [(adapter, config.strength)]
    checks = gate.check(components, weighted, lambda: measure.draw(components, wanted)[0], config.bound)
    peaks = memory.measure(components, weighted, list(CONDITIONS), lambda: measure.draw(components, measure.short(wanted, config)))
    handled = measure.handling(components, adapter, config.strength, config.repeats)
    size = sum(t.numel() * t.element_size() for update in adapter.layers.values() for t in tensors(update).values())
    source = adapters.parse(config.adapter)
    name = (adapter.metadata.get("modelspec.title") or source.name) if isinstance(source, Path) else config.adapter
    subject = result.Subject(name, len(adapter.layers), adapter.parameters, size)
    return Result(config, environment.record(components.device), subject, checks, handled, peaks, (), complete=False)


def blocks(found: Result, components: Components, weighted: gate.Weighted, path: Path, say: Progress) -> Result:
    """`found` with the samples; saved after every block, so that even a killed run keeps what it measured."""
    config = found.config
    planned = plan.blocks(config.blocks, config.prompts, config.seeds, list(CONDITIONS), config.seed)
    try:
        for block in planned:
            samples = measure.block_samples(components, block, weighted, config)
            found = replace(found, samples=(*found.samples, *samples))
            result.write(found, path)
            say(block.index + 1, config.blocks, "measuring")
    except KeyboardInterrupt:
        say(len(found.samples) // len(CONDITIONS), config.blocks, "interrupted")
    return found


def untouched(components: Components, before: str) -> gate.Check:
    law = "after all samples every tensor is the base's, bit for bit"
    return gate.Check(law, before[:12], gate.fingerprint(components) == before)


def written(found: Result, folder: Path) -> Outcome:
    """The report of `found`: JSON, Markdown and, if there is anything to plot, a PNG."""
    analysis = result.analyse(found)
    result.write(found, folder / "benchmark.json")
    with replacing(folder / "benchmark.md") as temporary:
        temporary.write_text(report.markdown(found), encoding="utf-8")
    if analysis:
        plot.save(found, analysis, folder / "benchmark.png")
    return Outcome(found, analysis, folder / "benchmark.json", folder / "benchmark.md", folder / "benchmark.png" if analysis else None)


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
