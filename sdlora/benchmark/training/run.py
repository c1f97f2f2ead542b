"""The course of a training benchmark: the same losses first, then memory, then paired blocks, then the report."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import process_time

import numpy as np

from sdlora import hardware
from sdlora.atomic import writable_folder
from sdlora.benchmark import environment, files, gate, plan, setting
from sdlora.benchmark.clock import timing
from sdlora.benchmark.files import Progress
from sdlora.benchmark.training import peak, plot, report, result
from sdlora.benchmark.training.config import TrainingBenchmarkConfig
from sdlora.benchmark.training.contenders import Go, ready
from sdlora.benchmark.training.result import Analysis, Result, Sample
from sdlora.benchmark.work import Counter, Work

Outcome = files.Outcome[Result, Analysis]


def run(config: TrainingBenchmarkConfig, progress: Progress | None = None) -> Outcome:
    """Measures and writes benchmark.json, .md, .html and .png to `config.output`.

    SdloraError if the contenders' losses differ: then nothing is measured. Ctrl-C ends the measuring, not the report.
    """
    say = progress or (lambda done, total, words: None)
    folder, names = writable_folder(config.output), list(dict.fromkeys(config.contenders))
    with setting.threads(config.threads), ExitStack() as contest:
        say(0, config.blocks, "loading")
        going = {name: contest.enter_context(ready(name, config)) for name in names}
        say(0, config.blocks, "checking")
        checks = gate.passed(same_losses({name: go(config.checked) for name, go in going.items()}, config))
        counts = tuple(counted(name, go) for name, go in going.items())
        say(0, config.blocks, "measuring memory")
        peaks = tuple(peak.measure(name, config) for name in names)
        surroundings = environment.record(hardware.device(config.device))
        found = Result(config, surroundings, checks, parameters(config), counts, peaks, (), complete=False)
        with setting.settled_heap():
            found = blocks(found, going, folder, say)
    return written(found, folder)


def analyse(path: Path) -> Outcome:
    """The report of a finished or interrupted benchmark anew, from the samples in its JSON, beside that file."""
    return written(result.read(path), path.parent, path.name)


def same_losses(losses: Mapping[str, list[float]], config: TrainingBenchmarkConfig) -> tuple[gate.Check, ...]:
    """Of the first steps, against the first contender's."""
    first, *others = losses
    ours = np.array(losses[first])
    apart = {name: float(np.max(np.abs(np.array(losses[name]) / ours - 1))) for name in others}
    law = f"the losses of the first {config.checked} steps are those of {first} within {config.bound:g}"
    words = f", from {ours[0]:.4f} to {ours[-1]:.4f}"
    return tuple(gate.Check(f"{name}: {law}", f"{off:.1e}{words}", off <= config.bound) for name, off in apart.items())


def counted(name: str, go: Go) -> Work:
    """The arithmetic of one optimiser step."""
    with Counter() as counter:
        go(1)
    return Work(name, counter.flops, counter.bytes)


def parameters(config: TrainingBenchmarkConfig) -> int:
    from sdlora.benchmark import bases
    from sdlora.training import planning
    from sdlora.training.config import TrainConfig

    modules = bases.load(config.base, config.device, config.precision).modules
    targets = planning.targets_of(TrainConfig(images=config.images, output=config.output, rank=config.rank).settled(), modules)
    return sum(target.parameters for target in targets)


def blocks(found: Result, going: Mapping[str, Go], folder: Path, say: Progress) -> Result:
    """`found` with the samples; saved after every block."""
    config, names = found.config, list(going)
    rng = np.random.default_rng(config.seed)
    orders: list[tuple[str, ...]] = []
    while len(orders) < config.blocks:
        orders += plan.square(names, rng)
    try:
        for block, order in enumerate(orders[: config.blocks]):
            taken = tuple(timed(block, place, name, going[name], config) for place, name in enumerate(order))
            found = replace(found, samples=(*found.samples, *taken))
            result.write(found, folder / files.NAME)
            say(block + 1, config.blocks, "measuring")
    except KeyboardInterrupt:
        say(report.blocks(found), config.blocks, "interrupted")
    return replace(found, complete=report.blocks(found) == config.blocks)


def timed(block: int, place: int, name: str, go: Go, config: TrainingBenchmarkConfig) -> Sample:
    go(config.warmup)
    with timing(hardware.device(config.device)) as seconds:
        cpu = process_time()
        losses = go(config.steps)
        cpu = process_time() - cpu
    return Sample(block, place, name, seconds[0], cpu, tuple(losses), environment.load())


def written(found: Result, folder: Path, name: str = files.NAME) -> Outcome:
    """The report of `found`: JSON, Markdown, HTML and, if there is anything to plot, a PNG."""
    analysis, path = result.analyse(found), folder / name
    result.write(found, path)
    return files.reported(found, analysis, path, plot.save, lambda picture: (report.markdown(found), report.page(found, picture)))
