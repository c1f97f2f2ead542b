"""Who is compared: our training steps, and the plain loop, on the same pictures, noise, timesteps and first weights."""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from sdlora import apply, hardware
from sdlora.benchmark import bases
from sdlora.benchmark.training.config import CACHED, CONTROL, OURS, TrainingBenchmarkConfig
from sdlora.data import buckets, pictures
from sdlora.data.encode import Planned
from sdlora.errors import SdloraError
from sdlora.models import Components
from sdlora.training import TrainConfig, session, sources
from sdlora.training.batches import batches
from sdlora.training.deal import dealt
from sdlora.training.loop import steps
from sdlora.training.progress import Silent
from sdlora.training.run import Run

Go = Callable[[int], list[float]]  # so many optimiser steps further; their losses


def settings(config: TrainingBenchmarkConfig, output: Path) -> TrainConfig:
    """What both do: the plain objective, a constant rate, clipping at 1."""
    return TrainConfig(
        base=config.base,
        images=config.images,
        output=output,
        rank=config.rank,
        targets=("attention",),
        steps=10**6,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule="constant",
        warmup=0,
        min_snr=0.0,
        clip=1.0,
        resolution=config.resolution,
        seed=config.seed,
        device=config.device,
        precision=config.precision,
    ).settled()


@contextmanager
def ready(name: str, config: TrainingBenchmarkConfig) -> Iterator[Go]:
    """The contender `name`, on networks of its own, after everything that is done once."""
    components = bases.load(config.base, config.device, config.precision)
    with ExitStack() as block:
        folder = Path(block.enter_context(tempfile.TemporaryDirectory(prefix="sdlora-benchmark-")))
        fitted = session.fitted(settings(config, folder), components)
        found = sources.gathered(fitted)
        if name in (OURS, CONTROL):
            run = block.enter_context(session.underway(fitted, components, found, Silent()))
            block.enter_context(session.idle_parts(run, gone=True))
            yield lambda count: [step.loss for step in steps(run, run.step + count)]
        else:
            with session.underway(fitted, components, found, Silent()) as run:  # its first weights and its batches, and then it goes
                first = {layer.removeprefix("unet."): update.a for layer, update in apply.extract(components.modules).layers.items()}
            how = buckets.frames(fitted, sources.grid(components))
            plan = sources.planned(found.images, fitted, how, fitted.batch_size)
            yield reference(name, config, components, run, plan, first)


def reference(
    name: str, config: TrainingBenchmarkConfig, components: Components, run: Run, plan: Sequence[Planned], first: dict[str, Tensor]
) -> Go:
    if len(components.text_encoders) > 1:
        raise SdloraError(f"the plain loop is that of Stable Diffusion with one text encoder; {components.name} has two")
    parts = {**components.modules, "vae": components.vae, "tokenizer": components.tokenizers[0]}
    plain = script(config.plain).Plain(
        parts,
        components.alphas_bar,
        lambda i: pixels(plan[i]),
        [planned.example.caption for planned in plan],
        config.rank,
        config.learning_rate,
        hardware.dtype(config.precision),
        cached=name == CACHED,
    )
    plain.begin_with(first)
    done = 0

    def go(count: int) -> list[float]:
        nonlocal done
        losses = []
        for step in range(done, done + count):
            (batch,) = batches(run.sources, run.config, step, len(components.alphas_bar))
            losses.append(plain.step(rows(run, step), batch.noise, batch.timesteps))
        done += count
        return losses

    return go


def rows(run: Run, step: int) -> list[int]:
    """Which pictures our batch `step` has."""
    (source,), config = run.sources, run.config
    return [card.row for card in dealt(source.deck, step, source.batch_size, config.seed, f"order of {source.name}")]


def pixels(planned: Planned) -> Tensor:
    """(3, h, w) in [-1, 1]: the picture as it is framed."""
    crop = planned.crops[0]
    return pictures.to_tensor(pictures.cut(pictures.read(planned.example.path), crop.box, crop.size))


def script(path: Path) -> Any:
    """The plain loop's module; SdloraError without PEFT, or if it is not there."""
    if find_spec("peft") is None:
        raise SdloraError("the plain loop needs the package peft; pip install peft, or leave its contenders out")
    if not path.is_file():
        raise SdloraError(f"plain = {path}: there is no such file; it is train/plain_loop.py of the repository")
    spec = importlib.util.spec_from_file_location("plain_loop", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
