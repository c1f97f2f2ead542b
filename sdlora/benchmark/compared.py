"""A new benchmark against a recorded one: ratios within one run, ours over the reference, never seconds.

A machine, its load and its number of cores change both times of a ratio alike, or nearly; what changes the ratio is the code.
It counts as worse only where the two intervals do not touch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdlora.benchmark import result
from sdlora.benchmark.conditions import CONDITIONS
from sdlora.benchmark.files import kind
from sdlora.benchmark.names import OVER, PICTURE, STEP
from sdlora.benchmark.statistics import Comparison
from sdlora.benchmark.training import config as training_config
from sdlora.benchmark.training import result as training_result
from sdlora.errors import SdloraError

ALLOWED = 0.02  # by so much a ratio may lie beyond the recorded interval: no two machines are quite alike


@dataclass(frozen=True)
class Compared:
    name: str  # "a / b": time of a over time of b
    new: Comparison
    recorded: Comparison

    @property
    def worse(self) -> bool:
        return self.new.low > self.recorded.high * (1 + ALLOWED)

    @property
    def better(self) -> bool:
        return self.new.high * (1 + ALLOWED) < self.recorded.low

    @property
    def outcome(self) -> str:
        return "worse" if self.worse else "better" if self.better else "as recorded"

    @property
    def line(self) -> str:
        """In words, of the same width up to the name: ratios with their intervals."""
        new, recorded = (f"{c.ratio:.3f} ({c.low:.3f} … {c.high:.3f})" for c in (self.new, self.recorded))
        return f"{self.outcome:11}  {new}, recorded {recorded}:  {self.name}"


def compare(new: Path, recorded: Path) -> list[Compared]:
    """The ratios that both files have; SdloraError if there are none, and for files of different kinds."""
    if kind(new) != kind(recorded):
        raise SdloraError(f"{new} is {kind(new)} and {recorded} is {kind(recorded)}; compare like with like")
    before, now = dict(ratios(recorded)), dict(ratios(new))
    found = [Compared(name, now[name], before[name]) for name in before if name in now]
    if not found:
        raise SdloraError(f"{new} and {recorded} have no ratio of ours to the reference in common; measure the same conditions")
    return found


def ratios(path: Path) -> Iterator[tuple[str, Comparison]]:
    """Ours over the reference, each that one file has. Not ours over our own base: that one rises when the base gets faster."""
    if kind(path) == training_result.FORMAT:
        trained = training_result.analyse(training_result.read(path))
        for pair in trained.pairs if trained else ():
            if pair.contender == training_config.OURS:
                yield pair.contender + OVER + pair.against, pair.comparison
        return
    drawn = result.analyse(result.read(path))
    for one in (*drawn.pairs, *drawn.handling) if drawn else ():
        if theirs(one.against) and not theirs(one.condition):
            name = one.condition + OVER + one.against
            if one.turns:  # where steps take turns caches are colder: not to be held against pictures on their own
                yield name + STEP, one.turns
            yield name + (PICTURE if one.turns else ""), one.comparison


def theirs(name: str) -> bool:
    """Whether a condition, or an operation, is the reference's."""
    return CONDITIONS[name].stock if name in CONDITIONS else "(PEFT)" in name
