"""A whole training: prepare, go through the steps, save at intervals, go on where an interrupted one stopped."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from sdlora import apply, conditioning, files, hardware, models
from sdlora.data import Cache, fingerprint
from sdlora.data.buckets import frames
from sdlora.data.cache import folder_of
from sdlora.errors import SdloraError
from sdlora.families import EPSILON
from sdlora.models import Components
from sdlora.schedule import zero_terminal
from sdlora.training import layout as layouts
from sdlora.training import metrics, optimizers, placement, planning, prior, sources
from sdlora.training.batches import Source
from sdlora.training.config import TrainConfig
from sdlora.training.layout import Layout
from sdlora.training.loop import steps
from sdlora.training.progress import Silent, Terminal
from sdlora.training.run import Run, metadata
from sdlora.training.trainable import trainable

Draw = Callable[[Path, int], None]  # (a saved adapter, its step); the components carry no trainable updates meanwhile


def train(
    config: TrainConfig,
    draw: Draw | None = None,
    progress: bool = True,
    imagine: prior.Imagine | None = None,
    components: Components | None = None,
) -> Path:
    """Train as `config` says, or go on with an interrupted run in its output folder; returns the adapter's path.

    draw        called with every adapter that is saved; puts its picture at Layout(config.output).sample(step)
    imagine     draws the base's own pictures for prior preservation; needed with prior.prompts only
    components  the base, if it is loaded already; it comes back as it was. By default config.base is loaded, and with no `draw`
                to need them, the VAE and the text encoders that do not learn are let go of once everything is encoded.

    An interrupted run, even a killed one, ends in the same bytes as one that was never stopped (CPU, same number of
    threads). SdloraError for everything a user can mend; KeyboardInterrupt after Ctrl-C or SIGTERM, with the state saved.
    """
    config = config.settled()
    report = Terminal(config.steps) if progress else Silent()
    found = sources.gathered(config)
    # an unknown base or target is an error before anything is written
    planning.targets_of(config, components.modules if components else None)
    alone = components is None
    components = rescaled(components, config) if components else loaded(config, report.say)
    config = fitted(config, components)
    place = Layout(config.output)
    layouts.agree(place, config)
    layouts.begin(place, config)
    with report, underway(config, components, found, report, imagine) as run:
        with idle_parts(run, gone=alone and draw is None), placement.checkpointing(components, config):
            with hardware.compiled(components.unet, config.compile):
                return _carry_out(run, place, draw, report)


@contextmanager
def underway(
    config: TrainConfig, components: Components, found: sources.Found, report: Silent, imagine: prior.Imagine | None = None
) -> Iterator[Run]:
    """A run at step 0, its updates on `components`, everything encoded; afterwards the components are as they were.

    `config` is settled and fitted, `found` what sources.gathered gave.
    """
    place = Layout(config.output)
    with placement.prepared(components, config), placement.deterministic(components.device):
        cache = Cache(folder_of(config.cache))
        encoded = sources.made(found, components, config, cache, place.prior, imagine, report.say)
        identity = {"base model": components.hash, "images": fingerprint(found.examples)}
        try:
            yield _run(config, components, encoded, cache, identity)
        finally:
            apply.eject(components.modules)


def loaded(config: TrainConfig, say: Callable[[str], None] | None = None) -> Components:
    """The base that `config` names, where and as precisely as it says; `say` is told what it was taken for."""
    where = placement.device(config.device)
    dtype = hardware.dtype(placement.precision(config.precision, where))
    said = None if config.base in models.BUILT_IN else say
    return rescaled(models.load(config.base, where, dtype, say=said, **config.reading), config)


def rescaled(components: Components, config: TrainConfig) -> Components:
    """The base with a noise schedule that ends in pure noise, if the settings say so; it shares all networks with the one given."""
    if not config.noise.zero_snr or components.alphas_bar[-1] == 0:
        return components
    if components.prediction == EPSILON:
        raise SdloraError(
            f"noise.zero_snr needs a base that predicts v, and {components.name} predicts ε, which of pure noise says nothing; leave it out"
        )
    return replace(components, alphas_bar=zero_terminal(components.alphas_bar))


def unused(run: Run) -> list[nn.Module]:
    """What the steps do without, now that all is encoded: the VAE, and text encoders of which none learns."""
    encoders = [] if planning.trains_text(run.config) else list(run.components.text_encoders)
    return [run.components.vae, *encoders]


@contextmanager
def idle_parts(run: Run, gone: bool) -> Iterator[None]:
    """Inside, `unused` parts wait in the CPU's memory, or nowhere at all if they are not needed again."""
    if gone:
        hardware.release(unused(run))
        yield
        return
    with hardware.resident(unused(run), torch.device("cpu")):
        yield


def fitted(config: TrainConfig, components: Components) -> TrainConfig:
    """The settings that only the loaded base and its device can tell, spelled out; SdloraError if the base cannot serve."""
    sides = frames(config, sources.grid(components)).sides
    resolution = sides[0] if len(sides) == 1 else sides
    conditioning.check_clip_skip(components, config.clip_skip)
    precision = placement.precision(config.precision, components.device)
    return config.model_copy(update={"resolution": resolution, "precision": precision})


def _run(config: TrainConfig, components: Components, encoded: list[Source], cache: Cache, identity: dict[str, str]) -> Run:
    prompts = sources.prompts(encoded, components, config, cache, planning.trains_text(config))
    parameters, groups = trainable(components, config)
    rates = [group["lr"] for group in groups]
    scaler = torch.amp.GradScaler(components.device.type, enabled=config.precision == "fp16")
    optimizer = optimizers.build(groups, config.optimizer.name, config.weight_decay, config.optimizer.arguments)
    return Run(config, components, encoded, prompts, identity, parameters, optimizer, rates, scaler)


def _carry_out(run: Run, place: Layout, draw: Draw | None, report: Silent) -> Path:
    """The loop's consumer: log, save, draw, stop."""
    config = run.config
    if place.state.exists():
        run.load_state(place.state)
        _complete(run, place, draw)
        report.say(f"{'finished already' if run.step == config.steps else 'going on'} at step {run.step} of {config.steps}")
    metrics.rewind(place.metrics, run.step)
    report.start(run.step)
    with stoppable() as stop:
        for step in _guarded(run, place):
            metrics.append(place.metrics, step)
            report.step(step)
            if step.number == config.steps or (config.save_every and step.number % config.save_every == 0):
                _save(run, place)
                run.save_state(place.state)
                _draw(run, place, draw)
            if stop() and step.number < config.steps:
                run.save_state(place.state)
                raise KeyboardInterrupt(f"stopped after step {step.number} of {config.steps}; the same command goes on from there")
    return place.adapter


def _guarded(run: Run, place: Layout) -> Iterator:
    """The steps; a failure also says what is left."""
    try:
        yield from steps(run)
    except SdloraError as error:
        kept = f"the last good state is in {place.state}" if place.state.exists() else "no state had been saved yet"
        raise SdloraError(f"{error}; {kept}") from error


def _file(run: Run, place: Layout) -> Path:
    return place.adapter if run.step == run.config.steps else place.checkpoint(run.step)


def _save(run: Run, place: Layout) -> None:
    files.save(run.adapter(metadata(run)), _file(run, place), run.config.format)


def _draw(run: Run, place: Layout, draw: Draw | None) -> None:
    if draw is not None and not place.sample(run.step).exists():
        components = run.components
        with apply.suspended(components.modules), hardware.plain(components.unet), hardware.resident(unused(run), components.device):
            draw(_file(run, place), run.step)


def _complete(run: Run, place: Layout, draw: Draw | None) -> None:
    """What should be there at the step of the state that was loaded, and is not: an interruption can fall between two files."""
    every = run.config.save_every
    if run.step == run.config.steps or (every and run.step % every == 0):
        if not _file(run, place).exists():
            _save(run, place)
        _draw(run, place, draw)


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM wait for the end of the step, so that the state is whole; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt("stopped at once")
        asked.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
