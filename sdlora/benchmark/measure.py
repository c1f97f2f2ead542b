"""Times of drawing under every condition, in paired blocks, with what they depend on and where they go."""

import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from PIL import Image

from sdlora.benchmark import environment
from sdlora.benchmark.clock import timing
from sdlora.benchmark.conditions import Active, Subject, active
from sdlora.benchmark.config import BenchmarkConfig
from sdlora.benchmark.gate import image_hash
from sdlora.benchmark.names import BASE
from sdlora.benchmark.phases import Phases, watched
from sdlora.benchmark.plan import Block, Roles
from sdlora.benchmark.turns import Player, together
from sdlora.errors import SdloraError, nearest
from sdlora.generation import Request
from sdlora.generation.generate import Always
from sdlora.images import save_png

TAG = re.compile(r",?\s*<lora:[^:>]+(?::([-+.\d]+))?>")


@dataclass(frozen=True)
class Sample:
    """One timed drawing: text encoding, all steps, decoding of all its images. Everything in seconds."""

    block: int
    place: int  # in the block's order, from 0
    condition: str
    prompt: str
    seed: int
    seconds: float  # what the ratios are made from; saving is not in it
    cpu: float  # the processor's time meanwhile, over all threads: what other programs do is hardly in it
    activate: float  # the switch to the condition, before the warm-up
    text: float
    steps: tuple[float, ...]  # each call of the U-Net
    vae: float
    save: float  # all images, as PNG
    load: float | None  # of the machine when the sample ended
    clock: float | None  # MHz
    image: str  # sha256 of the first picture
    rival: str = ""  # of a sample of the base that took turns: the condition with which
    turns: tuple[float, ...] = ()  # of one that took turns: every step but a batch's first, with guidance, sampler and all the loop does
    turns_cpu: tuple[float, ...] = ()  # the processor's time of each


Taken = tuple[Sample, list[Image.Image]]  # and its pictures


def requests(config: BenchmarkConfig, prompt: str, seed: int) -> list[Request]:
    """The pictures of one sample."""
    settings: dict[str, Any] = {name: getattr(config, name) for name in ("steps", "guidance", "width", "height")}
    known = [field.name for field in fields(Request)]
    for name, value in config.request.items():
        if name not in known:
            raise SdloraError(f"request.{name} = {value!r}: this version's pictures have no such setting{nearest(name, known)}")
        if name in ("prompt", "seed", "adapters", *settings):
            raise SdloraError(f"request.{name}: the benchmark has a setting of its own for that; say {name} = … outside [request]")
    first = Request(untagged(prompt, config.strength), seed=seed, **settings | config.request)
    return [replace(first, seed=seed + i) for i in range(config.images)]


def untagged(prompt: str, strength: float) -> str:
    """`prompt` without its <lora:NAME:η>: the conditions say which adapters are on. SdloraError for an η that is not `strength`."""
    for eta in TAG.findall(prompt):
        if float(eta or 1) != strength:
            raise SdloraError(f"the prompt {prompt!r} asks for η = {eta}, the benchmark measures strength = {strength:g}; make them equal")
    return TAG.sub("", prompt).strip()


def short(wanted: Sequence[Request], config: BenchmarkConfig) -> list[Request]:
    """What warms up: one batch with few steps."""
    return [replace(request, steps=min(config.warmup, config.steps)) for request in wanted[: config.batch]]


def timed(subject: Subject, block: Block, place: int, config: BenchmarkConfig) -> Taken:
    """One sample: switch to the condition, warm up, draw under the clock; and its pictures."""
    name, device, wanted = block.order[place], subject.components.device, requests(config, block.prompt, block.seed)
    begun = perf_counter()
    with active(subject, name, block.prompt) as condition:
        switched = perf_counter() - begun
        warm(condition, wanted, config)
        with watched(condition, device) as phases, timing(device) as seconds:
            cpu = process_time()
            images = condition.draw(wanted)
            cpu = process_time() - cpu
    return sample(block, place, name, images, phases, seconds=seconds[0], cpu=cpu, activate=switched), images


def timed_in_turns(subject: Subject, block: Block, place: int, config: BenchmarkConfig, roles: Roles, pack: bool) -> tuple[Taken, Taken]:
    """Two samples whose steps took turns: of the base, and of a condition. Each has networks of its own, and all its turns are its time."""
    name, device, wanted = block.order[place], subject.components.device, requests(config, block.prompt, block.seed)
    own, other = subject.sets(name, roles.swapped)
    same: bool | Always = "always" if pack else False  # the second would else be asked when the first has made its copies
    with ExitStack() as stack:
        base = stack.enter_context(active(subject, BASE, block.prompt, other, same))
        begun = perf_counter()
        condition = stack.enter_context(active(subject, name, block.prompt, own, same))
        switched = perf_counter() - begun
        for one in (base, condition):
            warm(one, wanted, config)
        both = (condition, base) if roles.leads else (base, condition)
        phases = {one: stack.enter_context(watched(one, device)) for one in both}
        players = dict(zip(both, together([partial(one.draw, wanted) for one in both], device), strict=True))
    return (
        played(block, place, BASE, players[base], phases[base], activate=0.0, rival=name),
        played(block, place, name, players[condition], phases[condition], activate=switched),
    )


def played(block: Block, place: int, name: str, player: Player, phases: Phases, **known: Any) -> Taken:
    pure = [turn for turn in player.turns if turn.pure]
    steps = {"turns": tuple(turn.seconds for turn in pure), "turns_cpu": tuple(turn.cpu for turn in pure)}
    whole = {"seconds": sum(turn.seconds for turn in player.turns), "cpu": sum(turn.cpu for turn in player.turns)}
    return sample(block, place, name, player.result, phases, **steps, **whole, **known), player.result


def warm(condition: Active, wanted: Sequence[Request], config: BenchmarkConfig) -> None:
    if config.warmup:
        condition.draw(short(wanted, config))


def sample(block: Block, place: int, name: str, images: Sequence[Image.Image], phases: Phases, **measured: Any) -> Sample:
    """What `measured` says, and what can be known behind the clock."""
    return Sample(
        block=block.index,
        place=place,
        condition=name,
        prompt=block.prompt,
        seed=block.seed,
        text=sum(phases.seconds("text")),
        steps=phases.seconds("unet"),
        vae=sum(phases.seconds("vae")),
        save=saving(images),
        load=environment.load(),
        clock=environment.clock(phases.device),
        image=image_hash(images[0]),
        **measured,
    )


def saving(images: Sequence[Image.Image]) -> float:
    with tempfile.TemporaryDirectory(prefix="sdlora-benchmark-") as folder:
        begun = perf_counter()
        for i, image in enumerate(images):
            save_png(image, Path(folder) / f"{i}.png", {})
        return perf_counter() - begun
