"""One benchmark as data: every sample, the gate, the environment; to JSON and back; and its analysis from the raw samples alone."""

import math
import statistics as plain
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdlora.benchmark import files
from sdlora.benchmark.conditions import CONDITIONS
from sdlora.benchmark.config import BenchmarkConfig
from sdlora.benchmark.gate import Check
from sdlora.benchmark.handling import Handling
from sdlora.benchmark.measure import Sample
from sdlora.benchmark.memory import Memory
from sdlora.benchmark.names import AGAINST, BASE, COMPARED, CONTROL, OVER, PICTURE, STEP
from sdlora.benchmark.statistics import Comparison, compare, judged, of_steps, trend
from sdlora.benchmark.work import Work

FORMAT = "sdlora-benchmark/2"
UNDECLARED: dict[str, Any] = {
    "margins": {},
    "limits": {},
    "seconds": {},
    "pairing": "pictures",
}  # what an earlier file does not say of its run


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
    drift: tuple[float, float] | None  # statistics.drift of the ratio, of steps where they took turns; None for the base
    turns: Comparison | None = None  # of the steps that took turns with the base's; None for the base, and where pictures are paired
    turns_processor: Comparison | None = None  # the same of the processor's time
    turn: float | None = None  # seconds of such a step, median


@dataclass(frozen=True)
class Pair:
    """Two conditions of the same blocks, neither of which is the base."""

    condition: str
    against: str
    comparison: Comparison
    processor: Comparison | None
    turns: Comparison | None = None  # of steps, where both took turns with the base's
    turns_processor: Comparison | None = None


@dataclass(frozen=True)
class Goal:
    """A ratio that the settings aim at, and what came of it."""

    name: str  # of `limits`, with STEP or PICTURE behind it where it is said of both
    limit: float
    comparison: Comparison

    @property
    def outcome(self) -> str:
        """ "met" and "missed" are said of the whole interval, not of the ratio alone."""
        if self.comparison.high <= self.limit:
            return "met"
        return "missed" if self.comparison.low > self.limit else "open"


@dataclass(frozen=True)
class Ceiling:
    """A time that the settings aim at, and how long the operation took."""

    name: str
    limit: float  # seconds
    median: float
    low: float  # the shortest and the longest of all repeats
    high: float

    @property
    def outcome(self) -> str:
        """ "met" and "missed" are said of every repeat."""
        if self.high <= self.limit:
            return "met"
        return "missed" if self.low > self.limit else "open"


@dataclass(frozen=True)
class Analysis:
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]  # ours against the reference
    control: bool | None  # does the control's interval cover 1, of steps where they took turns? None without control
    handling: tuple[Pair, ...]  # operations on an adapter, round against round
    goals: tuple[Goal, ...]  # those of the settings that were measured
    ceilings: tuple[Ceiling, ...] = ()  # likewise

    def row(self, condition: str) -> Row:
        return next(row for row in self.rows if row.condition == condition)


@dataclass(frozen=True)
class Drawn:
    """A sample, and the base's of the same block that it is held against: the one that it took turns with, or the only one."""

    own: Sample
    base: Sample

    def log(self, clock: str) -> float:
        """ln of the ratio to the base: of `seconds` or `cpu` of the whole, or of `turns` or `turns_cpu`, the steps."""
        if clock in ("turns", "turns_cpu"):
            return of_steps(getattr(self.own, clock), getattr(self.base, clock))
        return math.log(getattr(self.own, clock) / getattr(self.base, clock))


Blocks = list[dict[str, Drawn]]  # of every block the conditions; the base, held against itself, is one of them


def analyse(result: Result) -> Analysis | None:
    """The table, from the blocks in which every condition ran; None for fewer than two of them."""
    names = [name for name in CONDITIONS if any(sample.condition == name for sample in result.samples)]
    whole = [block for block in drawn(result.samples) if len(block) == len(names)]
    if len(whole) < 2 or BASE not in names:
        return None
    rows = tuple(_row(name, whole, result) for name in names)
    control = next((row.turns or row.comparison for row in rows if row.condition == CONTROL), None)
    pairs = tuple(
        Pair(
            name, other, _compared(whole, name, other, result), _processor(whole, name, other, result), *_turns(whole, name, other, result)
        )
        for name, other in AGAINST
        if name in names and other in names
    )
    handled = tuple(_handled(result))
    known = dict(
        _known([(row.condition, row) for row in rows] + [(pair.condition + OVER + pair.against, pair) for pair in (*pairs, *handled)])
    )
    goals = tuple(
        Goal(name + of, limit, known[name + of])
        for name, limit in result.config.limits.items()
        for of in (STEP, PICTURE, "")
        if name + of in known
    )
    return Analysis(rows, pairs, control.low <= 1 <= control.high if control else None, handled, goals, tuple(_ceilings(result)))


def drawn(samples: Sequence[Sample]) -> Blocks:
    """Every block that has a sample of the base, in order."""
    by_block: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_block[sample.block].append(sample)
    found = []
    for _, several in sorted(by_block.items()):
        bases = {sample.rival: sample for sample in several if sample.condition == BASE}
        if bases:
            own = {s.condition: Drawn(s, bases.get(s.condition) or bases[""]) for s in several if s.condition in bases or "" in bases}
            found.append({BASE: Drawn(*[next(iter(bases.values()))] * 2)} | {name: one for name, one in own.items() if name != BASE})
    return found


def _known(named: Iterable[tuple[str, Row | Pair]]) -> Iterator[tuple[str, Comparison]]:
    """What a limit can be held against: of drawings that took turns a step and a picture."""
    for name, one in named:
        if one.comparison and one.turns:
            yield name + STEP, one.turns
            yield name + PICTURE, one.comparison
        elif one.comparison:
            yield name, one.comparison


def _handled(result: Result) -> Iterator[Pair]:
    config, seconds = result.config, {one.operation: one.seconds for one in result.handling}
    for name, other in COMPARED:
        if name in seconds and other in seconds:
            found = compare(seconds[name], seconds[other], config.margin, config.confidence, config.resamples, config.seed)
            yield Pair(name, other, found, None)


def _ceilings(result: Result) -> Iterator[Ceiling]:
    for one in result.handling:
        if one.operation in result.config.seconds:
            yield Ceiling(one.operation, result.config.seconds[one.operation], one.median, min(one.seconds), max(one.seconds))


def _row(name: str, blocks: Blocks, result: Result) -> Row:
    peaks = {one.condition: one for one in result.memory}
    found, base = peaks.get(name), peaks.get(BASE)
    peak, base_peak = found.peak if found else None, base.peak if base else None
    whole = {block[BASE].own.block for block in blocks}
    samples = [sample for sample in result.samples if sample.condition == name and sample.block in whole]
    seconds, turns = plain.median(s.seconds for s in samples), [turn for s in samples for turn in s.turns]
    other = name != BASE
    steps, steps_processor = _turns(blocks, name, BASE, result) if other else (None, None)
    return Row(
        condition=name,
        samples=len(blocks),
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
        drift=trend(_logs(blocks, name, BASE, "turns" if turns else "seconds")) if other else None,
        turns=steps,
        turns_processor=steps_processor,
        turn=plain.median(turns) if turns else None,
    )


def _logs(blocks: Blocks, name: str, other: str, clock: str) -> np.ndarray:
    """ln of time over time, one number per block; that of two conditions by way of the base, which stood beside each."""
    return np.array([block[name].log(clock) - block[other].log(clock) for block in blocks])


def _compared(blocks: Blocks, name: str, other: str, result: Result, clock: str = "seconds") -> Comparison:
    config = result.config
    margin = config.margins.get(name, config.margin) if other == BASE else config.margin
    return judged(_logs(blocks, name, other, clock), margin, config.confidence, config.resamples, config.seed)


def _processor(blocks: Blocks, name: str, other: str, result: Result, clock: str = "cpu") -> Comparison | None:
    """On a GPU the processor only waits, and its time says nothing."""
    if result.environment["device"] != "cpu" or not _positive(blocks, (name, other), clock):
        return None
    return _compared(blocks, name, other, result, clock)


def _turns(blocks: Blocks, name: str, other: str, result: Result) -> tuple[Comparison | None, Comparison | None]:
    """By the clock, and by the processor's time."""
    told = _positive(blocks, (name, other), "turns")
    return _compared(blocks, name, other, result, "turns") if told else None, _processor(blocks, name, other, result, "turns_cpu")


def _positive(blocks: Blocks, names: Sequence[str], clock: str) -> bool:
    """Whether every sample concerned has such times."""
    found = [getattr(sample, clock) for block in blocks for name in names for sample in (block[name].own, block[name].base)]
    return all(min(times, default=0) > 0 if isinstance(times, tuple) else times > 0 for times in found)


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
        samples=tuple(
            Sample(**sample | {name: tuple(sample.get(name, ())) for name in ("steps", "turns", "turns_cpu")})
            for sample in content["samples"]
        ),
        complete=content["complete"],
        pictures=tuple(Pictured(**one) for one in content["pictures"]),
        after=content["after"],
        work=tuple(Work(**one) for one in content.get("work", ())),
    )
