"""A whole training: prepare, go through the steps, save at intervals, go on where an interrupted one stopped."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from sdlora import apply, hardware, models
from sdlora.data import Cache, Encoded, Example, encode, fingerprint
from sdlora.errors import SdloraError
from sdlora.families import EPSILON
from sdlora.models import Components
from sdlora.schedule import zero_terminal
from sdlora.training import again, initial, intervals, optimizers, placement, planning, prior, processes, record, text
from sdlora.training import layout as layouts
from sdlora.training.batches import Source
from sdlora.training.config import TrainConfig
from sdlora.training.course import Course, Draw
from sdlora.training.layout import Layout
from sdlora.training.planning import Found
from sdlora.training.processes import ALONE, World
from sdlora.training.progress import Silent, Terminal
from sdlora.training.run import Run
from sdlora.training.tracking import Trackers
from sdlora.training.trainable import trainable


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
    world = processes.world()
    config = config.settled()
    report = Terminal(config.steps) if progress and world.main else Silent()
    found = planning.checked(config)
    # an unknown base or target is an error before anything is written
    planning.targets_of(config, components.modules if components else None)
    alone = components is None
    components = rescaled(components, config) if components else loaded(config, report.say)
    config = fitted(config, components)
    place = Layout(config.output)
    layouts.agree(place, config)
MARK1
        finally:
            apply.eject(components.modules)


@dataclass(frozen=True, eq=False)
class Made:
    """What a training is made from, encoded."""

    cache: Cache
    sources: list[Source]
    held: Held | None
    parts: dict[str, list[Example]]


def _made(found: Found, components: Components, config: TrainConfig, world: World, report: Silent, imagine: prior.Imagine | None) -> Made:
    place = Layout(config.output)
    cache = Cache(config.cache or place.cache)
    sources = [Source("images", _encoded(found.train, components, config, cache, report), config.batch_size * world.size, 1.0)]
    parts = {"train": found.train} | ({"validation": found.held} if found.held else {})
    held = None
    if found.held:
        plain = config.model_copy(update={"flip": False})
        digests = tuple(example.digest for example in found.held)
        held = Held(_encoded(found.held, components, plain, cache, report), digests, config.validation.timesteps)
    if config.prior.on:
        report.say("drawing the base's own pictures")
        parts["prior"] = prior.examples(place.prior, config.prior, components, config.seed, components.size, imagine)
        own = _encoded(parts["prior"], components, config, cache, report)
        sources.append(Source("prior", own, config.priors_per_batch * world.size, config.prior.weight))
    return Made(cache, sources, held, parts)


def _identity(config: TrainConfig, components: Components, found: Found, world: World) -> dict[str, str]:
    """What a run that goes on has to have in common with the one that began, beside its settings."""
    result = {"base model": components.hash, "images": fingerprint(found.train)}
    if config.init is not None:
        result["init"] = initial.digest(config.init)
    if world.size > 1:
        result["number of processes"] = str(world.size)
    return result


def _course(run: Run, place: Layout, report: Silent, draw: Draw | None, held: Held | None) -> Course:
    config = run.config
    images = len(run.sources[0].data)
    every = intervals.steps(config.save_every, images, config.samples_per_step * run.world.size)
    trackers = Trackers(config.trackers, place.trackers, config.title, again.written(config))
    return Course(run, place, report, every, draw if run.world.main else None, held, trackers)


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


@contextmanager
def idle_parts(run: Run, gone: bool) -> Iterator[None]:
    """Inside, what the steps do without waits in the CPU's memory, or nowhere at all if they are not needed again."""
    idle = placement.unused(run.components, run.config)
    if gone:
        hardware.release(idle)
        yield
        return
    with hardware.resident(idle, torch.device("cpu")):
        yield


def fitted(config: TrainConfig, components: Components) -> TrainConfig:
    """The settings that only the loaded base and its device can tell, spelled out; SdloraError if the base cannot serve."""
    multiple = components.factor * 2 ** (len(components.unet.config.block_out_channels) - 1)
    resolution = config.resolution or components.size
    if resolution % multiple:
        near = max(multiple, round(resolution / multiple) * multiple)
        raise SdloraError(f"resolution is {resolution}; {components.name} needs a multiple of {multiple}, such as {near}")
    precision = placement.precision(config.precision, components.device)
    return config.model_copy(update={"resolution": resolution, "precision": precision})


def _encoded(found: list, components: Components, config: TrainConfig, cache: Cache, report: Silent) -> Encoded:
    assert config.resolution is not None
    report.say("encoding the images")
    return encode(found, components, config.resolution, cache, config.flip)


def _run(
    config: TrainConfig,
    components: Components,
    sources: Sequence[Source],
    cache: Cache,
    identity: dict[str, str],
    world: World = ALONE,
    held: Held | None = None,
) -> Run:
    captions = [caption for data in [*(source.data for source in sources), *([held.data] if held else [])] for caption in data.captions]
    prompts = text.encoded(captions, components) if config.trains_text else text.cached(captions, components, cache)
    parameters, groups = trainable(components, config)
    if config.init is not None:
        initial.start(components.modules, config.init)
    rates = [group["lr"] for group in groups]
    scaler = torch.amp.GradScaler(components.device.type, enabled=config.precision == "fp16")
MARK2
