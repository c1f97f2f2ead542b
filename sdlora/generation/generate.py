"""Requests in, pictures out: text → noise → the sampler's steps → VAE, any number of pictures at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdlora import hardware
from sdlora.adapter import Adapter
from sdlora.apply import constant, cross_attention
from sdlora.conditioning import Sizes, time_ids
from sdlora.errors import SdloraError
from sdlora.families import FAMILIES
from sdlora.generation import adapters, conditions, noise
from sdlora.generation.adapters import AUTO, Active, Wanted, Weighted
from sdlora.generation.conditions import Texts
from sdlora.generation.course import Course
from sdlora.generation.denoiser import denoiser, one_timestep
from sdlora.generation.request import Request
from sdlora.generation.sampler import State, sample
from sdlora.generation.samplers import Noise
from sdlora.generation.schedules import Schedule, schedule
from sdlora.latents import decode
from sdlora.models import Components
from sdlora.strength import Strength, strength

POSITIONS = 1024  # latent positions in a batch by default: 4 pictures of 64 px with f = 4, where the gain ends on a CPU

Callback = Callable[[State], None]


@dataclass(frozen=True, eq=False)
class Picture:
    request: Request
    image: Image.Image  # RGB
    apply: str = "stacked"  # how adapters were on the model for it


@dataclass(frozen=True, eq=False)
class Group:
    """What is drawn in one batch."""

    requests: list[Request]
    wanted: list[list[Wanted]]  # the adapters of each
    apply: str
    base: Components  # with the noise schedule that the adapters ask for


def generate(
    components: Components,
    requests: Iterable[Request],
    weighted: Sequence[tuple[Adapter, float | str | Strength]] = (),
    apply: str = AUTO,
    batch: int | None = None,
    callback: Callback | None = None,
    named: Mapping[str, Adapter] | None = None,
    offload: torch.device | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[Picture]:
    """The pictures, in the order of their requests, each as soon as its batch is done.

    weighted  adapters with their strengths (sdlora/strength.py). They are on the model only while a batch is drawn, never while the
              caller has control; strength 0 is the base itself, bit for bit.
    apply     stacked, fused, or auto: what costs less for what is asked (`ways` has the rule). Picture.apply says which it was.
    batch     pictures drawn together at the most, those with different adapters too if these are stacked; by default as many as keep a
              CPU busy. A picture does not depend on it: on the CPU bit for bit, but for the rounding of stacked adapters where their
              rank is 1 altogether, or neighbours have others (1e-6 of the latents' scale).
    callback  is called after every step of every batch.
    named     the adapters that a prompt asks for by <lora:NAME:…>, and those that a request has of its own, by its words for their files.
              Without `weighted` a request's own have to be among them; beside it they may be there for the record.
    say       gets a line that tells what `auto` chose.
    offload   a device with little memory: text encoders, U-Net and VAE come there in turn and go back to where they were.

    SdloraError (before anything is drawn) for a size that the model cannot draw, for more steps than the schedule has noise levels and
    for a tag without an adapter; and when a picture turns into NaN.
    """
    if batch is not None and batch < 1:
        raise SdloraError(f"batch is {batch}; it has to be at least 1")
    wanted = list(requests)
    if not FAMILIES[components.family].pooled and any(r.original or r.target or r.crop != (0, 0) for r in wanted):
        raise SdloraError(f"original, crop and target size act on SDXL alone, and {components.name} is none; leave them out")
    everywhere = [(adapter, strength(eta)) for adapter, eta in weighted]
    groups = list(_batches(components, wanted, everywhere, named or {}, apply, batch))
    for group in groups:
        _schedule(group.base, group.requests[0])
        for chosen in group.wanted:
            adapters.check(components, chosen, group.apply)
    if say and apply == AUTO and any(chosen for group in groups for chosen in group.wanted):
        say(adapters.said([group.apply for group in groups for _ in group.requests]))
    return _pictures(components, groups, named or {}, callback, offload)


def size(components: Components, request: Request) -> tuple[int, int]:
    """(height, width) in pixels; SdloraError unless every level of the U-Net halves it evenly."""
    multiple = components.factor * 2 ** (len(components.unet.config.block_out_channels) - 1)
    height, width = request.height or components.size, request.width or components.size
    for name, side in (("height", height), ("width", width)):
        if side % multiple:
            near = max(multiple, round(side / multiple) * multiple)
            raise SdloraError(f"{name} {side} does not fit {components.name}: it has to be a multiple of {multiple}, {near} for example")
    return height, width


def sizes(components: Components, request: Request) -> Sizes:
    """What SDXL is told of the picture: unless the request says otherwise, that it was always of this size and is whole."""
    side = size(components, request)
    return Sizes(request.original or side, request.crop, request.target or side)


def _pictures(
    components: Components, groups: list[Group], named: Mapping[str, Adapter], callback: Callback | None, offload: torch.device | None
) -> Iterator[Picture]:
    texts = Texts(components, offload or components.device)
    for group in groups:
        with adapters.active(components, group.wanted, named, group.apply, group.requests[0].steps) as active:
            images = _draw(group.base, group.requests, active, texts, callback, offload)
        yield from (Picture(request, image, group.apply) for request, image in zip(group.requests, images, strict=True))


def _batches(
    components: Components,
    requests: Iterable[Request],
    weighted: list[Weighted],
    named: Mapping[str, Adapter],
    apply: str,
    batch: int | None,
) -> Iterator[Group]:
    """Neighbours that can share the calls of the U-Net."""

    def many(request: Request) -> int:
        height, width = size(components, request)
        return batch or max(1, POSITIONS * components.factor**2 // (height * width))

    chosen = [(request, adapters.chosen(request, weighted, named)) for request in requests]
    for request, _ in chosen:
        conditions.check(components, request)
    ways = adapters.ways(components, chosen, apply, many)
    bases = [adapters.levelled(components, wanted, named) for _, wanted in chosen]
    pictures = [(request, wanted, way, base) for (request, wanted), way, base in zip(chosen, ways, bases, strict=True)]
    for _, run in groupby(pictures, lambda picture: (_alike(components, *picture[:3]), picture[3] is components)):
        alike = list(run)
        most = many(alike[0][0])
        for part in (alike[i : i + most] for i in range(0, len(alike), most)):
            yield Group([picture[0] for picture in part], [picture[1] for picture in part], *part[0][2:])


def _alike(components: Components, request: Request, wanted: list[Wanted], way: str) -> tuple[Any, ...]:
    """What requests of one batch have in common: their adapters too, where these are fused."""
    common = request.steps, request.method, request.noise, request.guided, way
    return *size(components, request), *common, adapters.same(wanted) if way == "fused" else None


@torch.inference_mode()
def _draw(
    components: Components, requests: list[Request], active: Active, texts: Texts, callback: Callback | None, offload: torch.device | None
) -> list[Image.Image]:
    """One batch. `texts` remembers what is encoded already."""
    with hardware.resident(components.text_encoders, offload):
        course = Course(requests, texts, active)

    def after(state: State) -> None:
        course.enter(state.step)
        if callback:
            callback(state)

    guidance = torch.tensor([r.guidance for r in requests], device=texts.device).view(-1, 1, 1, 1)
    told = time_ids([sizes(components, request) for request in requests], texts.device)
    denoise = denoiser(components.unet, components.prediction, course.now, guidance, told)
    levels, start, fresh = _noise(components, requests)
    with hardware.resident([components.unet], offload), one_timestep(components.unet), constant(cross_attention(components.unet)):
        latents = sample(requests[0].method, denoise, start.to(texts.device), levels, fresh, after)
    with hardware.resident([components.vae], offload):
        return [_decode(components, latents[i : i + 1], request) for i, request in enumerate(requests)]


def _schedule(components: Components, request: Request) -> Schedule:
    method = request.method
    return schedule(method.schedule, components.alphas_bar, request.steps, method.sampler.discard)


def _noise(components: Components, requests: list[Request]) -> tuple[Schedule, Tensor, Noise]:
    """The levels of a batch, its x at the first of them, and the noise that its sampler may add on the way; both on the CPU."""
    levels, seeds, source = _schedule(components, requests[0]), [r.seed for r in requests], noise.source_name(requests[0].noise)
    height, width = (side // components.factor for side in size(components, requests[0]))
    shape = (components.unet.config.in_channels, height, width)
    streams = noise.streams(seeds, shape, source)
    start = noise.drawn(streams) * levels.sigmas[0].item()
    if requests[0].method.sampler.brownian:
        return levels, start, noise.between(seeds, shape, levels.sigmas.tolist(), source)
    return levels, start, lambda *_: noise.drawn(streams)


def _decode(components: Components, latents: Tensor, request: Request) -> Image.Image:
    """(1, 4, h, w) -> an RGB picture. Values are rounded, as diffusers does (AUTOMATIC1111 truncates)."""
    pixels = decode(components, latents).float()
    if not (torch.isfinite(latents).all() and torch.isfinite(pixels).all()):
        remedy = "bf16 or fp32" if components.dtype == torch.float16 else "weaker adapters or less guidance"
        raise SdloraError(f"the picture of {request.prompt!r} with seed {request.seed} turned into NaN; try {remedy}")
    levels = ((pixels[0] / 2 + 0.5) * 255).round().to("cpu", torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())
