"""One training benchmark as data: every sample; to JSON and back; and its analysis from the raw samples alone."""

import statistics as plain
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdlora.benchmark import files
from sdlora.benchmark.gate import Check
from sdlora.benchmark.names import OVER
from sdlora.benchmark.result import Goal
from sdlora.benchmark.statistics import Comparison, compare
from sdlora.benchmark.training.config import CONTROL, PAIRS, TrainingBenchmarkConfig
from sdlora.benchmark.training.peak import Peak
from sdlora.benchmark.work import Work

FORMAT = "sdlora-training-benchmark/1"
UNDECLARED: dict[str, Any] = {"memory": {}}  # what an earlier file does not say was not declared before its run


@dataclass(frozen=True)
class Sample:
    """So many steps of one contender, in seconds."""

    block: int
    place: int  # in the block's order, from 0
    contender: str
    seconds: float
    cpu: float  # the processor's time meanwhile, over all threads
    losses: tuple[float, ...]
    load: float | None  # of the machine when the sample ended


@dataclass(frozen=True)
class Result:
    config: TrainingBenchmarkConfig
    environment: dict[str, Any]
    gate: tuple[Check, ...]
    parameters: int  # of the adapter
    work: tuple[Work, ...]  # of one optimiser step
    peaks: tuple[Peak, ...]
    samples: tuple[Sample, ...]
    complete: bool


@dataclass(frozen=True)
class Row:
    contender: str
    step: float  # seconds, median
    images_per_second: float  # from that median
    peak: Peak | None


@dataclass(frozen=True)
class Pair:
    """Times of the one over times of the other: below 1 the one is faster."""

    contender: str
    against: str
    comparison: Comparison
    processor: Comparison | None  # of the processor's time; None on a GPU, where the processor only waits


@dataclass(frozen=True)
class MemoryGoal:
    """A ratio of peaks that the settings aim at; on a GPU of the device's, else of the process's."""

    name: str
    limit: float
    ratio: float

    @property
    def outcome(self) -> str:
        return "met" if self.ratio <= self.limit else f"missed by {100 * (self.ratio / self.limit - 1):.1f} %"


@dataclass(frozen=True)
class Analysis:
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    goals: tuple[Goal, ...]
    control: bool | None  # does the control's interval cover 1? None without control
    memory: tuple[MemoryGoal, ...] = ()


def analyse(result: Result) -> Analysis | None:
    """From the blocks in which every contender ran; None for fewer than two of them."""
    by_block: dict[int, dict[str, Sample]] = defaultdict(dict)
    for sample in result.samples:
        by_block[sample.block][sample.contender] = sample
    names = list(dict.fromkeys(result.config.contenders))
    whole = [block for _, block in sorted(by_block.items()) if len(block) == len(names)]
    if len(whole) < 2:
        return None
    config, cpu = result.config, not result.environment["device"].startswith("cuda")
    peaks = {peak.contender: peak for peak in result.peaks}

    def row(name: str) -> Row:
        step = plain.median(block[name].seconds for block in whole) / config.steps
        return Row(name, step, config.batch_size / step, peaks.get(name))

    def against(one: str, other: str, clock: str) -> Comparison:
        above, below = ([getattr(block[name], clock) for block in whole] for name in (one, other))
        return compare(above, below, config.margin, config.confidence, config.resamples, config.seed)

    pairs = tuple(
        Pair(one, other, against(one, other, "seconds"), against(one, other, "cpu") if cpu else None)
        for one, other in PAIRS
        if one in names and other in names
    )
    found = {pair.contender + OVER + pair.against: pair.comparison for pair in pairs}
    goals = tuple(Goal(name, limit, found[name]) for name, limit in config.limits.items() if name in found)
    control = next((pair.comparison for pair in pairs if pair.contender == CONTROL), None)
    covers = control.low <= 1 <= control.high if control else None
    return Analysis(tuple(row(name) for name in names), pairs, goals, covers, tuple(memory_goals(config.memory, peaks)))


def memory_goals(limits: Mapping[str, float], peaks: Mapping[str, Peak]) -> Iterator[MemoryGoal]:
    """Those whose two peaks the system told."""
    for name, limit in limits.items():
        mine, theirs = (peaks[one].device if one in peaks else None for one in name.split(OVER))
        if mine is not None and theirs is not None:
            yield MemoryGoal(name, limit, mine / theirs)


def write(result: Result, path: Path) -> None:
    content: dict[str, Any] = {"format": FORMAT, "config": result.config.model_dump(mode="json"), "environment": result.environment}
    content |= {name: [asdict(one) for one in getattr(result, name)] for name in ("gate", "work", "peaks", "samples")}
    content |= {"parameters": result.parameters, "complete": result.complete}
    analysis = analyse(result)
    content["analysis"] = asdict(analysis) if analysis else None  # for readers; `read` makes it anew
    files.write(path, content)


def read(path: Path) -> Result:
    """What `write` wrote; SdloraError for anything else."""
    return files.read(path, FORMAT, _made)


def _made(content: dict[str, Any]) -> Result:
    return Result(
        config=TrainingBenchmarkConfig.model_validate(UNDECLARED | content["config"]),
        environment=content["environment"],
        gate=tuple(Check(**one) for one in content["gate"]),
        parameters=content["parameters"],
        work=tuple(Work(**one) for one in content["work"]),
        peaks=tuple(Peak(**one) for one in content["peaks"]),
        samples=tuple(Sample(**one | {"losses": tuple(one["losses"])}) for one in content["samples"]),
        complete=content["complete"],
    )
