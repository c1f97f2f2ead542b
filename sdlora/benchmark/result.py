"""One benchmark as data: every sample, the gate, the environment; to JSON and back; and its analysis from the raw samples alone."""

import statistics as plain
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdlora.benchmark import files
from sdlora.benchmark.conditions import CONDITIONS
from sdlora.benchmark.config import BenchmarkConfig
from sdlora.benchmark.gate import Check
from sdlora.benchmark.handling import Handling
from sdlora.benchmark.measure import Sample
from sdlora.benchmark.memory import Memory
from sdlora.benchmark.names import AGAINST, BASE, COMPARED, CONTROL, OVER
from sdlora.benchmark.statistics import Comparison, compare, drift
from sdlora.benchmark.work import Work

FORMAT = "sdlora-benchmark/2"
UNDECLARED: dict[str, Any] = {"margins": {}, "limits": {}}  # what is not in an earlier file was not declared before its run


@dataclass(frozen=True)
class Facts:
    """The adapter under test, in numbers."""

    name: str
    layers: int
    parameters: int
    bytes: int  # of its tensors in memory


@dataclass(frozen=True)
class Pictured:
    """A picture that was kept, the first of a sample."""

    prompt: str
    seed: int
    condition: str
    file: str  # relative to the folder of the JSON


@dataclass(frozen=True)
class Result:
    config: BenchmarkConfig
    environment: dict[str, Any]
    subject: Facts
    gate: tuple[Check, ...]
    handling: tuple[Handling, ...]
    memory: tuple[Memory, ...]
    samples: tuple[Sample, ...]
    complete: bool  # False: interrupted, or still running
    pictures: tuple[Pictured, ...] = ()
    after: dict[str, Any] | None = None  # the environment at the end
    work: tuple[Work, ...] = ()


@dataclass(frozen=True)
class Row:
    """A condition in the table."""

    condition: str
    samples: int
    seconds: float  # median of a sample
    images_per_second: float  # from that median
    peak_bytes: int | None
    over_base: int | None  # bytes that the peak lies above the base's
    host_bytes: int | None  # the same of the process
    first: float | None  # seconds from the switch to the condition to the end of its first drawing, median
    text: float  # medians of the phases of a sample
    step: float  # of one call of the U-Net
    vae: float
    save: float
    comparison: Comparison | None  # None for the base itself
    processor: Comparison | None  # the same of the processor's time; None for the base, and on a GPU
    drift: tuple[float, float] | None  # statistics.drift of the ratio; None for the base


@dataclass(frozen=True)
class Pair:
    """Two conditions of the same blocks, neither of which is the base."""

    condition: str
    against: str
    comparison: Comparison
    processor: Comparison | None


@dataclass(frozen=True)
class Goal:
    """A ratio that the settings aim at, and what came of it."""

    name: str  # of `limits`
    limit: float
    comparison: Comparison

    @property
    def outcome(self) -> str:
        """ "met" and "missed" are said of the whole interval, not of the ratio alone."""
        if self.comparison.high <= self.limit:
            return "met"
        return "missed" if self.comparison.low > self.limit else "open"


@dataclass(frozen=True)
class Analysis:
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]  # ours against the reference
    control: bool | None  # does the control's interval cover 1? None without control
    handling: tuple[Pair, ...]  # operations on an adapter, round against round
    goals: tuple[Goal, ...]  # those of the settings that were measured

    def row(self, condition: str) -> Row:
        return next(row for row in self.rows if row.condition == condition)


def analyse(result: Result) -> Analysis | None:
    """The table, from the blocks in which every condition ran; None for fewer than two of them."""
    by_block: dict[int, dict[str, Sample]] = defaultdict(dict)
    for sample in result.samples:
        by_block[sample.block][sample.condition] = sample
    names = [name for name in CONDITIONS if any(sample.condition == name for sample in result.samples)]
    whole = [block for _, block in sorted(by_block.items()) if len(block) == len(names)]
    if len(whole) < 2 or BASE not in names:
        return None
    rows = tuple(_row(name, whole, result) for name in names)
    control = next((row.comparison for row in rows if row.condition == CONTROL), None)
    pairs = tuple(
        Pair(name, other, _compared(whole, name, other, result), _processor(whole, name, other, result))
        for name, other in AGAINST
        if name in names and other in names
    )
    handled = tuple(_handled(result))
    known = {row.condition: row.comparison for row in rows if row.comparison}
    known |= {pair.condition + OVER + pair.against: pair.comparison for pair in (*pairs, *handled)}
    goals = tuple(Goal(name, limit, known[name]) for name, limit in result.config.limits.items() if name in known)
    return Analysis(rows, pairs, control.low <= 1 <= control.high if control else None, handled, goals)


def _handled(result: Result) -> Iterator[Pair]:
    config, seconds = result.config, {one.operation: one.seconds for one in result.handling}
    for name, other in COMPARED:
        if name in seconds and other in seconds:
            found = compare(seconds[name], seconds[other], config.margin, config.confidence, config.resamples, config.seed)
            yield Pair(name, other, found, None)


def _row(name: str, blocks: list[dict[str, Sample]], result: Result) -> Row:
    peaks = {one.condition: one for one in result.memory}
    found, base = peaks.get(name), peaks.get(BASE)
    peak, base_peak = found.peak if found else None, base.peak if base else None
    samples = [block[name] for block in blocks]
    seconds = plain.median(s.seconds for s in samples)
    other = name != BASE
    return Row(
        condition=name,
        samples=len(samples),
        seconds=seconds,
        images_per_second=result.config.images / seconds,
        peak_bytes=peak,
        over_base=peak - base_peak if other and peak is not None and base_peak is not None else None,
        host_bytes=found.host if found else None,
        first=plain.median(found.first) if found and found.first else None,
        text=plain.median(s.text for s in samples),
        step=plain.median(step for s in samples for step in s.steps or (0.0,)),
        vae=plain.median(s.vae for s in samples),
        save=plain.median(s.save for s in samples),
        comparison=_compared(blocks, name, BASE, result) if other else None,
        processor=_processor(blocks, name, BASE, result) if other else None,
        drift=drift([s.seconds for s in samples], [block[BASE].seconds for block in blocks]) if other else None,
    )


def _compared(blocks: list[dict[str, Sample]], name: str, other: str, result: Result, clock: str = "seconds") -> Comparison:
    config = result.config
    above, below = ([getattr(block[condition], clock) for block in blocks] for condition in (name, other))
    margin = config.margins.get(name, config.margin) if other == BASE else config.margin
    return compare(above, below, margin, config.confidence, config.resamples, config.seed)


def _processor(blocks: list[dict[str, Sample]], name: str, other: str, result: Result) -> Comparison | None:
    """On a GPU the processor only waits, and its time says nothing."""
    on_cpu = result.environment["device"] == "cpu" and all(block[n].cpu > 0 for block in blocks for n in (name, other))
    return _compared(blocks, name, other, result, "cpu") if on_cpu else None


def write(result: Result, path: Path, analysed: bool = True) -> None:
    """JSON with every sample; the analysis beside them is for readers and is not read back."""
    analysis = analyse(result) if analysed else None
    content = {
        "format": FORMAT,
        **{name: getattr(result, name) for name in ("environment", "after", "complete")},
        "config": result.config.model_dump(mode="json", exclude={"output"}),
        "subject": asdict(result.subject),
        "gate": [asdict(check) for check in result.gate],
        "handling": [asdict(one) for one in result.handling],
        "memory": [asdict(one) for one in result.memory],
        "work": [asdict(one) for one in result.work],
        "samples": [asdict(sample) for sample in result.samples],
        "pictures": [asdict(one) for one in result.pictures],
        "analysis": asdict(analysis) if analysis else None,
    }
    files.write(path, content)


def read(path: Path) -> Result:
    """What `write` wrote; SdloraError for anything else."""
    return files.read(path, FORMAT, _made)


def _made(content: dict[str, Any]) -> Result:
    return Result(
        config=BenchmarkConfig.model_validate(UNDECLARED | content["config"]),
        environment=content["environment"],
        subject=Facts(**content["subject"]),
        gate=tuple(Check(**check) for check in content["gate"]),
        handling=tuple(Handling(one["operation"], tuple(one["seconds"])) for one in content["handling"]),
        memory=tuple(Memory(**one | {"first": tuple(one["first"])}) for one in content["memory"]),
        samples=tuple(Sample(**sample | {"steps": tuple(sample["steps"])}) for sample in content["samples"]),
        complete=content["complete"],
        pictures=tuple(Pictured(**one) for one in content["pictures"]),
        after=content["after"],
        work=tuple(Work(**one) for one in content.get("work", ())),
    )
