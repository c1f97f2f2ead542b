"""The course of the demo: train (or find trained), draw the sheet, measure."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Protocol

from PIL import Image

from sdlora import benchmark, config, files, generation, sheet
from sdlora.atomic import writable_folder
from sdlora.demo import samples, scenes
from sdlora.demo.scenes import COLUMNS, ROWS, Column, Row, Triggers
from sdlora.errors import SdloraError
from sdlora.generation import Request
from sdlora.models import Components
from sdlora.training import TrainConfig

Say = Callable[[str], None]
Bar = Callable[[], AbstractContextManager[benchmark.Progress | None]]  # shown while the benchmark runs
FAST_TRAINING = (
    "steps=4",
    "batch_size=2",
    "learning_rate=0.01",
    "warmup=1",
    "save_every=0",
    "samples.count=0",
    "prior.images=2",
    "prior.sampling_steps=2",
)
STRIP = 2  # rows of the sheet's upper part alone, strip.png: the README's picture
TITLE = "Two adapters, trained by this demo, at the strengths above each column; same seed along a row"


class Train(Protocol):
    """Carries out a training, or finds it done; the adapter's path. sdlora.commands.train.carry_out is one."""

    def __call__(self, config: TrainConfig, *, components: Components) -> Path: ...


@dataclass(frozen=True)
class Demo:
    output: Path
    base: str = "emoji"
    fast: bool = False  # few steps and pictures: shows that everything works, not what it can do
    folder: Path | None = None  # where configs/ and datasets/ lie; None: in the checkout

    @property
    def rows(self) -> Sequence[Row]:
        return ROWS[:2] if self.fast else ROWS

    @property
    def steps(self) -> int:
        """Of the sampler."""
        return 2 if self.fast else 20


@dataclass
class Stages:
    """Says what begins and keeps how long it took."""

    say: Say
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, words: str) -> Iterator[None]:
        self.say(words)
        start = perf_counter()
        yield
        self.seconds[words] = perf_counter() - start


@dataclass(frozen=True)
class Result:
    style: Path  # the adapters
    character: Path
    triggers: Triggers
    sheet: Path
    timing: benchmark.Outcome
    seconds: dict[str, float]  # by stage


def run(demo: Demo, train: Train, say: Say = print, bar: Bar = nullcontext) -> Result:
    """Trains what is not trained yet, draws demo.png and measures; everything goes into `demo.output`.

    A run that was interrupted goes on where it was; finished trainings are used again.
    """
    found, folder, stages = samples.find(demo.folder), writable_folder(demo.output), Stages(say)
    settings = {name: load(path, folder / name, demo) for name, path in (("style", found.style), ("character", found.character))}
    triggers = Triggers(trigger(settings["style"]), f"{trigger(settings['character'])} {samples.NOUN}")
    components, trained = generation.load(demo.base), {}
    for name, chosen in settings.items():
        with stages.stage(f"training the {name} adapter on {chosen.images.name}, {chosen.steps} steps"):
            trained[name] = train(chosen, components=components)
    with stages.stage(f"drawing {len(demo.rows) * len(COLUMNS)} pictures"):
        picture = draw(components, trained, triggers, demo, folder / "demo.png")
    with stages.stage("measuring what the style adapter costs"), bar() as progress:
        timing = benchmark.run(timing_settings(demo, trained["style"], triggers, folder), components, progress)
    return Result(trained["style"], trained["character"], triggers, picture, timing, stages.seconds)


def load(path: Path, output: Path, demo: Demo) -> TrainConfig:
    """The settings of a training; only where the result goes, and in a fast demo how long it takes, are the demo's."""
    changes = [f"output={output.absolute()}", *(FAST_TRAINING if demo.fast else ())]
    return config.load(TrainConfig, path, [*changes, *([] if demo.base == "emoji" else [f"base={demo.base}"])])


def trigger(settings: TrainConfig) -> str:
    if not settings.triggers:
        raise SdloraError(f"the settings of the training on {settings.images.name} name no trigger; the demo's prompts need one")
    return settings.triggers[0]


def draw(components: Components, trained: dict[str, Path], triggers: Triggers, demo: Demo, path: Path) -> Path:
    """The sheet: a row per scene, a column per choice of adapters; the seed of a row is its number."""
    adapters = {name: files.load(file, components.modules) for name, file in trained.items()}
    columns = []
    for column in COLUMNS:
        weighted = [(adapters["style"], column.style), (adapters["character"], column.character)]
        wanted = requests(column, triggers, demo)
        columns.append([picture.image for picture in generation.generate(components, wanted, weighted)])
    rows: list[list[Image.Image]] = [list(row) for row in zip(*columns, strict=True)]
    labels = [row.label for row in demo.rows], [column.label(triggers) for column in COLUMNS]
    sheet.contact_sheet(rows, *labels, path, TITLE)
    sheet.contact_sheet(rows[:STRIP], labels[0][:STRIP], labels[1], path.with_name("strip.png"))
    return path


def requests(column: Column, triggers: Triggers, demo: Demo) -> list[Request]:
    prompts = scenes.prompts(column, triggers, demo.rows)
    return [Request(prompt, seed=number, steps=demo.steps) for number, prompt in enumerate(prompts, start=1)]


def timing_settings(demo: Demo, adapter: Path, triggers: Triggers, folder: Path) -> benchmark.BenchmarkConfig:
    """A short benchmark: enough pairs for a quiet machine; a busy one is told how many more it takes."""
    style = Column("style", style=1.0)
    return benchmark.BenchmarkConfig(
        base=demo.base,
        adapter=str(adapter),
        prompts=tuple(scenes.prompts(style, triggers, ROWS[:4])),
        steps=demo.steps,
        conditions=("base", "base again", "fused", "stacked"),
        blocks=2 if demo.fast else 8,
        repeats=2 if demo.fast else 5,
        limits={},  # they are aims for rank 16 on attention alone
        seconds={},  # whole commands under the clock would take half a minute more
        output=folder / "benchmark",
    )
