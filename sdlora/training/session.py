"""A whole training: prepare, go through the steps, save at intervals, go on where an interrupted one stopped."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from sdlora import apply, conditioning, hardware, models
from sdlora.data import Cache, Example, Found, fingerprint
from sdlora.data.buckets import frames
from sdlora.data.cache import folder_of
from sdlora.data.sizes import readable
from sdlora.errors import SdloraError
from sdlora.families import EPSILON
from sdlora.models import Components
from sdlora.schedule import zero_terminal
from sdlora.together import together
from sdlora.training import again, heldout, initial, intervals, optimizers, placement, planning, prior, processes, record, saving, sources
from sdlora.training import layout as layouts
from sdlora.training.batches import Source
from sdlora.training.config import TrainConfig
from sdlora.training.course import Course, Draw
from sdlora.training.heldout import Held
from sdlora.training.layout import Layout
from sdlora.training.processes import ALONE, World
from sdlora.training.progress import Silent, Terminal
from sdlora.training.run import Run
from sdlora.training.sharding import split, whole
from sdlora.training.tracking import Trackers
from sdlora.training.trainable import trainable


@together()
def train(
    config: TrainConfig,
    draw: Draw | None = None,
    progress: bool = True,
    imagine: prior.Imagine | None = None,
    components: Components | None = None,
) -> Path:
    """Train as `config` says, or go on with an interrupted run in its output folder; returns the adapter's path.

    draw        called with every adapter that is saved; puts its picture at Layout(config.output).sample(step). What the steps do
                without waits in the CPU's memory then: draw with generate(…, offload=components.device)
    imagine     draws the base's own pictures for prior preservation; needed with prior.prompts only
    components  the base, if it is loaded already; it comes back as it was. By default config.base is loaded, and with no `draw`
                to need them, the VAE and the text encoders that do not learn are let go of once everything is encoded.

    An interrupted run, even a killed one, ends in the same bytes as one that was never stopped (CPU, same number of
    threads). SdloraError for everything a user can mend; KeyboardInterrupt after Ctrl-C or SIGTERM, with the state saved.
    """
    world = processes.world()
    config = config.settled()
    report = Terminal(config.steps) if progress and world.main else Silent()
    found, held = planning.checked(config)
    if words := processes.remark():
        report.say(words)
    # an unknown base or target is an error before anything is written
    planning.targets_of(config, components.modules if components else None)
    alone = components is None
    components = rescaled(components, config) if components else loaded(config, report.say)
    config = fitted(config, components)
    place = Layout(config.output)
    layouts.agree(place, config)
    if world.main:
        layouts.begin(place)
    with report, underway(config, components, found, report, imagine, world, held) as run:
        saving.check(run, place)  # before anything in a folder that holds another run is overwritten
        if world.main:
            layouts.write(place, config)
            record.write(place.manifest, record.manifest(run))
            record.add(place.environment, record.environment(components.device, config.precision, world.size))
        with idle_parts(run, gone=alone and draw is None), placement.checkpointing(run.components, config):
            with hardware.compiled(run.components.unet, config.compile):
                return course(run, place, report, draw if world.main else None).carry_out()


@contextmanager
def underway(
    config: TrainConfig,
    components: Components,
    found: Found,
    report: Silent,
    imagine: prior.Imagine | None = None,
    world: World = ALONE,
    held: Sequence[Example] = (),
) -> Iterator[Run]:
    """A run at step 0, its updates on `components`, everything encoded; afterwards the components are as they were.

    `config` is settled and fitted, `found` the images that sources.gathered gave, `held` those to validate with.
    """
    place = Layout(config.output)
    with placement.prepared(components, config), placement.deterministic(components.device):
        cache = Cache(folder_of(config.cache), config.cache_bytes)
        with world.main_first():
            wide = processes.widened(config, world)
            encoded = sources.made(found, components, wide, cache, place.prior, imagine, report.say)
            validated = heldout.encoded(held, components, config, cache, report.say) if held else None
        identity = {"base model": components.hash, "images": fingerprint(found.examples)}
        if config.init is not None:
            identity["init"] = initial.digest(config.init)
        if world.size > 1:
            identity["number of processes"] = str(world.size)
        working = split(components, config, world.sharding, world.device, world.size)
        try:
            run = _run(config, working, encoded, cache, identity, world, validated, components)
            run.originals = whole(components, working)
            run.idle = [*run.idle, *run.originals]
            if world.main and (freed := cache.trim()):
                report.say(f"the cache was larger than {config.cache_limit}: {readable(freed)} of the longest unused were deleted")
            yield run
        finally:
            apply.eject(working.modules)


def course(run: Run, place: Layout, report: Silent, draw: Draw | None) -> Course:
    """What is done beside the steps, as the settings say."""
    config = run.config
    images = len(run.sources[0].deck.cards)
    every = intervals.steps(config.save_every, images, config.samples_per_step * run.world.size)
    trackers = Trackers(config.trackers, place.trackers, config.title, again.written(config))
    return Course(run, place, report, every, draw, trackers)


def loaded(config: TrainConfig, say: Callable[[str], None] | None = None) -> Components:
    """The base that `config` names, where and as precisely as it says; `say` is told what it was taken for. On CUDA only what the
    steps need is there, so that the base as a whole never has to fit: the rest comes from the CPU's memory for its turn."""
    where = placement.device(config.device)
    dtype = hardware.dtype(placement.precision(config.precision, where))
    said = None if config.base in models.BUILT_IN else say
    found = models.load(config.base, "cpu" if where.type == "cuda" else where, dtype, say=said, **config.reading)
    for name, module in found.modules.items():
        if name == "unet" or config.trains_text:  # of several text encoders one that learns needs the others beside it
            module.to(where)
    return rescaled(found, config)


def rescaled(components: Components, config: TrainConfig) -> Components:
    """The base with a noise schedule that ends in pure noise, if the settings say so; it shares all networks with the one given."""
    if not config.noise.zero_snr or components.alphas_bar[-1] == 0:
        return components
    if components.prediction == EPSILON:
        raise SdloraError(
            f"noise.zero_snr needs a base that predicts v, and {components.name} predicts ε, which of pure noise says nothing; leave it out"
        )
    return replace(components, alphas_bar=zero_terminal(components.alphas_bar))


@contextmanager
def idle_parts(run: Run, gone: bool) -> Iterator[None]:
    """Inside, what the steps do without waits in the CPU's memory, or nowhere at all if they are not needed again."""
    if gone:
        hardware.release(run.idle)
        yield
        return
    with hardware.resident(run.idle, torch.device("cpu")):
        yield


def fitted(config: TrainConfig, components: Components) -> TrainConfig:
    """The settings that only the loaded base and its device can tell, spelled out; SdloraError if the base cannot serve."""
    sides = frames(config, sources.grid(components)).sides
    resolution = sides[0] if len(sides) == 1 else sides
    conditioning.check_clip_skip(components, config.clip_skip)
    own, total = config.timesteps, len(components.alphas_bar)
    if max(own.min + 1, own.max or 0) > total:
        raise SdloraError(
            f"timesteps.min is {own.min} and timesteps.max {own.max or 'unset'}; {components.name} has {total}: min is at most "
            f"{total - 1}, max at most {total}"
        )
    precision = placement.precision(config.precision, components.device)
    return config.model_copy(update={"resolution": resolution, "precision": precision})


def _run(
    config: TrainConfig,
    components: Components,
    encoded: Sequence[Source],
    cache: Cache,
    identity: dict[str, str],
    world: World = ALONE,
    held: Held | None = None,
    originals: Components | None = None,
) -> Run:
    """`components` are those that the steps go through, `originals` the same unsplit, where they are others."""
    texts = components if config.trains_text else originals or components
    prompts = sources.prompts([*encoded, *([held.source] if held else [])], texts, config, cache, config.trains_text)
    parameters, groups = trainable(components, config)
    if config.init is not None:
        initial.start(components.modules, config.init)
    rates = [group["lr"] for group in groups]
    scaler = torch.amp.GradScaler(components.device.type, enabled=config.precision == "fp16")
    optimizer = optimizers.build(groups, config.optimizer.name, config.weight_decay, config.optimizer.arguments)
    idle = placement.unused(components, config)
    return Run(config, components, encoded, prompts, identity, parameters, optimizer, rates, scaler, world, held, idle)
