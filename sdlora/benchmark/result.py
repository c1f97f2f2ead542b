"""One benchmark as data: every sample, the gate, the environment; to JSON and back; and its analysis from the raw samples alone."""

import json
import statistics as plain
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdlora.atomic import replacing
from sdlora.benchmark.conditions import BASE, CONDITIONS, CONTROL
from sdlora.benchmark.config import BenchmarkConfig
from sdlora.benchmark.gate import Check
from sdlora.benchmark.measure import Handling, Sample
from sdlora.benchmark.memory import Memory
from sdlora.benchmark.statistics import Comparison, compare
from sdlora.errors import SdloraError

FORMAT = "sdlora-benchmark/1"


@dataclass(frozen=True)
class Subject:
    """The adapter under test."""

    name: str
    layers: int
    parameters: int
    bytes: int  # of its tensors in memory


@dataclass(frozen=True)
class Result:
    config: BenchmarkConfig
    environment: dict[str, Any]
    subject: Subject
    gate: tuple[Check, ...]
    handling: tuple[Handling, ...]
    memory: tuple[Memory, ...]
    samples: tuple[Sample, ...]
    complete: bool  # False: interrupted, or still running


@dataclass(frozen=True)
class Row:
    """A condition in the table."""

    condition: str
    samples: int
    seconds: float  # median of a sample
    images_per_second: float  # from that median
    peak_bytes: int | None
    over_base: int | None  # bytes that the peak lies above the base's
    comparison: Comparison | None  # None for the base itself


@dataclass(frozen=True)
class Analysis:
    rows: tuple[Row, ...]
    control: bool | None  # does the control's interval cover 1? None without control

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
    return Analysis(rows, control.low <= 1 <= control.high if control else None)


def _row(name: str, blocks: list[dict[str, Sample]], result: Result) -> Row:
    config, peaks = result.config, {one.condition: one.peak for one in result.memory}
    peak, base_peak = peaks.get(name), peaks.get(BASE)
    samples, base = [block[name] for block in blocks], [block[BASE] for block in blocks]
    seconds = plain.median(s.seconds for s in samples)
    comparison = None
    if name != BASE:
        times = [s.seconds for s in samples], [s.seconds for s in base]
        comparison = compare(*times, config.margin, config.confidence, config.resamples, config.seed)
    return Row(
        condition=name,
        samples=len(samples),
        seconds=seconds,
        images_per_second=config.images / seconds,
        peak_bytes=peak,
        over_base=peak - base_peak if name != BASE and peak is not None and base_peak is not None else None,
        comparison=comparison,
    )


def write(result: Result, path: Path) -> None:
    """JSON with every sample; the analysis beside them is for readers and is not read back."""
    analysis = analyse(result)
    content = {
        "format": FORMAT,
        **{name: getattr(result, name) for name in ("environment", "complete")},
        "config": result.config.model_dump(mode="json", exclude={"output"}),
        "subject": asdict(result.subject),
        "gate": [asdict(check) for check in result.gate],
        "handling": [asdict(one) for one in result.handling],
        "memory": [asdict(one) for one in result.memory],
        "samples": [asdict(sample) for sample in result.samples],
        "analysis": asdict(analysis) if analysis else None,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> Result:
    """What `write` wrote; SdloraError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise SdloraError(f"{path} is of format {content['format']!r}; this version reads {FORMAT!r}")
        return Result(
            config=BenchmarkConfig.model_validate(content["config"]),
            environment=content["environment"],
            subject=Subject(**content["subject"]),
            gate=tuple(Check(**check) for check in content["gate"]),
            handling=tuple(Handling(one["operation"], tuple(one["seconds"])) for one in content["handling"]),
            memory=tuple(Memory(**one) for one in content["memory"]),
            samples=tuple(Sample(**sample) for sample in content["samples"]),
            complete=content["complete"],
        )
    except OSError as error:
        raise SdloraError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SdloraError(f"{path} is not the JSON of a benchmark: {error}") from error
