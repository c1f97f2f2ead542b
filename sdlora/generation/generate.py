"""Requests in, pictures out, any number at a time: what can be drawn together is, and `batch` draws it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, Literal

import torch
from PIL import Image

from sdlora.adapter import Adapter
from sdlora.errors import SdloraError
from sdlora.families import FAMILIES
from sdlora.generation import adapters, conditions, guard, starts
from sdlora.generation.adapters import AUTO, Wanted, Weighted
from sdlora.generation.batch import Callback, draw, levels
from sdlora.generation.conditions import Texts
from sdlora.generation.passes import largest, passes
from sdlora.generation.request import Request
from sdlora.models import Components
from sdlora.strength import Strength, strength

POSITIONS = 1024  # latent positions in a batch by default: 4 pictures of 64 px with f = 4, where the gain ends on a CPU
ENCODED = 16  # init pictures that are kept as latents, for requests to come

Always = Literal["always"]


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
    pack: bool | Always = True,
) -> Iterator[Picture]:
    """The pictures, in the order of their requests, each as soon as its batch is done.

    weighted  adapters with their strengths (sdlora/strength.py). They are on the model only while a batch is drawn, never while the
              caller has control; strength 0 is the base itself, bit for bit.
    apply     stacked, fused, or auto: what costs less for what is asked (`ways` has the rule). Picture.apply says which it was.
    batch     pictures drawn together at the most, those with different adapters too if these are stacked; by default as many as keep a
              CPU busy. A picture does not depend on it, bit for bit where convolutions are packed; without that PyTorch takes other
              kernels for one row (guidance 1) and, on one thread, from 16 rows on. Stacked adapters of rank 1 altogether, or beside
              neighbours with other adapters or strengths, or with prompts of other lengths, round differently too (1e-6 of the latents'
              scale): few numbers of a picture show it, by one level.
    callback  is called after every step of every batch.
    named     the adapters that a prompt asks for by <lora:NAME:…>, and those that a request has of its own, by its words for their files.
              Without `weighted` a request's own have to be among them; beside it they may be there for the record.
    say       gets a line that tells what `auto` chose.
    offload   a device with little memory: text encoders, U-Net and VAE come there in turn and go back to where they were.
    pack      on a CPU layers keep copies of their weights while a batch is drawn, in the kernel's order or with the adapters in them, where
              these take no more than a quarter of the memory that is free (docs/memory.md). False: never; what is drawn then differs by
              rounding.
              "always": without asking what is free, for a caller that has asked.

    SdloraError (before anything is drawn) for a size that the model or the memory cannot draw, for more steps than the schedule has
    noise levels, for an init picture or a mask that cannot be used and for a tag without an adapter; and when a picture turns into NaN,
    after the others of its batch.
    """
    check_batch(batch)
    wanted = list(requests)
    if not FAMILIES[components.family].pooled and any(r.original or r.target or r.crop != (0, 0) for r in wanted):
        raise SdloraError(f"original, crop and target size act on SDXL alone, and {components.name} is none; leave them out")
    everywhere = [(adapter, strength(eta)) for adapter, eta in weighted]
    starts.check(wanted)
    groups = list(_batches(components, wanted, everywhere, named or {}, apply, batch))
    for group in groups:
        _check(group, offload or components.device)
        for chosen in group.wanted:
            adapters.check(components, chosen, group.apply)
    if say and apply == AUTO and any(chosen for group in groups for chosen in group.wanted):
        say(adapters.said([group.apply for group in groups for _ in group.requests]))
    room = guard.room(offload or components.device, always=pack == "always") if pack else 0
    return _pictures(components, groups, named or {}, callback, offload, room)


def check_batch(batch: int | None) -> None:
    if batch is not None and batch < 1:
        raise SdloraError(f"batch is {batch}; it has to be at least 1")


def _check(group: Group, device: torch.device) -> None:
    """SdloraError for a batch that cannot be drawn."""
    request = group.requests[0]
    for one in passes(group.base, request):
        if one.steps:
            levels(group.base, request, one)
        guard.check(group.base, one.size, device, len(group.requests) * (1 + request.guided) if one.steps else 0)


def _pictures(
    components: Components,
    groups: list[Group],
    named: Mapping[str, Adapter],
    callback: Callback | None,
    offload: torch.device | None,
    room: int,
) -> Iterator[Picture]:
    texts = Texts(components, offload or components.device)
    known = lru_cache(ENCODED)(partial(starts.start, components))
    for group in groups:
        with (
            guard.enough(components),
            adapters.active(components, group.wanted, named, group.apply) as active,
        ):
            images = draw(group.base, group.requests, active, texts, known, callback, offload, room)
        for request, image in zip(group.requests, images, strict=True):
            if isinstance(image, Image.Image):
                yield Picture(request, image, group.apply)
        for image in images:
            if isinstance(image, SdloraError):
                raise image


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
        return batch or full(components, request)

    chosen = [(request, adapters.chosen(request, weighted, named)) for request in requests]
    for request, _ in chosen:
        conditions.check(components, request)
    ways = adapters.ways(components, chosen, apply, many)
    bases = [adapters.levelled(components, wanted, named) for _, wanted in chosen]
    pictures = [(request, wanted, way, base) for (request, wanted), way, base in zip(chosen, ways, bases, strict=True)]
    for _, run in groupby(pictures, lambda picture: (alike(components, *picture[:3]), picture[3] is components)):
        like = list(run)
        most = many(like[0][0])
        for part in (like[i : i + most] for i in range(0, len(like), most)):
            yield Group([picture[0] for picture in part], [picture[1] for picture in part], *part[0][2:])


def full(components: Components, request: Request) -> int:
    """How many pictures like this one are drawn together by default."""
    return max(1, POSITIONS * components.factor**2 // largest(passes(components, request)))


def alike(components: Components, request: Request, wanted: list[Wanted], way: str) -> tuple[Any, ...]:
    """What requests of one batch have in common: their adapters too, where these are fused."""
    common = request.steps, request.method, request.noise, request.guided, request.init is None, request.upscaler, way
    return passes(components, request), *common, adapters.same(wanted) if way == "fused" else None
