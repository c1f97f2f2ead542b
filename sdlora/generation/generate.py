"""Requests in, pictures out, any number at a time: what can be drawn together is, and `batch` draws it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from typing import Any

import torch
from PIL import Image

from sdlora.adapter import Adapter
from sdlora.apply import WAYS
from sdlora.errors import SdloraError, nearest
from sdlora.families import FAMILIES
from sdlora.generation import adapters, conditions, guard, starts
from sdlora.generation.adapters import Weighted
from sdlora.generation.batch import Callback, draw, levels
from sdlora.generation.conditions import Texts
from sdlora.generation.passes import largest, passes
from sdlora.generation.request import Request
from sdlora.models import Components
from sdlora.strength import Strength, strength

POSITIONS = 1024  # latent positions in a batch by default: 4 pictures of 64 px with f = 4, where the gain ends on a CPU
ENCODED = 16  # init pictures that are kept as latents, for requests to come

Group = tuple[list[Request], list[Weighted]]


@dataclass(frozen=True, eq=False)
class Picture:
    request: Request
    image: Image.Image  # RGB


def generate(
    components: Components,
    requests: Iterable[Request],
    weighted: Sequence[tuple[Adapter, float | str | Strength]] = (),
    apply: str = "stacked",
    batch: int | None = None,
    callback: Callback | None = None,
    named: Mapping[str, Adapter] | None = None,
    offload: torch.device | None = None,
) -> Iterator[Picture]:
    """The pictures, in the order of their requests, each as soon as its batch is done.

    weighted  adapters with their strengths (sdlora/strength.py). They are on the model only while a batch is drawn, never while the
              caller has control; strength 0 is the base itself, bit for bit.
    batch     pictures drawn together at the most; by default as many as keep a CPU busy. A picture does not depend on it: on the
              CPU bit for bit, but for stacked adapters of rank 1 altogether (rounding, 1e-6 of the latents' scale).
    callback  is called after every step of every batch.
    named     the adapters that a prompt can ask for by <lora:NAME:…>.
    offload   a device with little memory: text encoders, U-Net and VAE come there in turn and go back to where they were.

    SdloraError (before anything is drawn) for a size that the model or the memory cannot draw, for more steps than the schedule has
    noise levels, for an init picture or a mask that cannot be used and for a tag without an adapter; and when a picture turns into NaN,
    after the others of its batch.
    """
    if apply not in WAYS:
        raise SdloraError(f"unknown way to apply an adapter: {apply!r}{nearest(apply, WAYS)}")
    if batch is not None and batch < 1:
        raise SdloraError(f"batch is {batch}; it has to be at least 1")
    wanted = list(requests)
    if not FAMILIES[components.family].pooled and any(r.original or r.target or r.crop != (0, 0) for r in wanted):
        raise SdloraError(f"original, crop and target size act on SDXL alone, and {components.name} is none; leave them out")
    everywhere = [(adapter, strength(eta)) for adapter, eta in weighted]
    starts.check(wanted)
    groups = list(_batches(components, wanted, everywhere, named or {}, batch))
    for together, chosen in groups:
        _check(components, together[0], offload or components.device)
        adapters.check(components, chosen, apply)
    return _pictures(components, groups, apply, callback, offload)


def _check(components: Components, request: Request, device: torch.device) -> None:
    """SdloraError for a batch of requests like this one that cannot be drawn."""
    for one in passes(components, request):
        if one.steps:
            levels(components, request, one)
        guard.check(components, one.size, device)


def _pictures(
    components: Components, groups: list[Group], apply: str, callback: Callback | None, offload: torch.device | None
) -> Iterator[Picture]:
    texts = Texts(components, offload or components.device)
    known = lru_cache(ENCODED)(partial(starts.start, components))
    for requests, weighted in groups:
        with guard.enough(components), adapters.active(components, weighted, apply, requests[0].steps) as active:
            images = draw(components, requests, active, texts, known, callback, offload)
        yield from (Picture(request, image) for request, image in zip(requests, images, strict=True) if isinstance(image, Image.Image))
        for error in images:
            if isinstance(error, SdloraError):
                raise error


def _batches(
    components: Components, requests: Iterable[Request], weighted: list[Weighted], named: Mapping[str, Adapter], batch: int | None
) -> Iterator[Group]:
    """Neighbours that can share the calls of the U-Net."""
    chosen = [(request, adapters.chosen(request, weighted, named)) for request in requests]
    for request, _ in chosen:
        conditions.check(components, request)
    for (walk, *_), run in groupby(chosen, lambda c: _alike(components, *c)):
        many = batch or max(1, POSITIONS * components.factor**2 // largest(walk))
        alike = list(run)
        yield from (([request for request, _ in alike[i : i + many]], alike[i][1]) for i in range(0, len(alike), many))


def _alike(components: Components, request: Request, weighted: list[Weighted]) -> tuple[Any, ...]:
    """What requests of one batch have in common, their passes first."""
    way = request.steps, request.method, request.noise, request.guided, request.init is None, request.upscaler
    return passes(components, request), *way, adapters.same(weighted)
