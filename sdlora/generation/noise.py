"""The noise of a batch: fp32, and each picture from generators of its own, so that it does not depend on device, precision or batch.

The first draw of a picture's stream is what it starts from; an ancestral sampler goes on with the same stream, as AUTOMATIC1111 does.
A variation seed mixes another first draw into it, and ENSD ("eta noise seed delta") starts the later draws anew from another seed:
both as in AUTOMATIC1111's modules/rng.py.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from sdlora.errors import SdloraError, nearest
from sdlora.generation import brownian, philox

Shape = tuple[int, ...]  # of one picture's latents


def cpu_stream(seed: int, shape: Shape) -> Iterator[Tensor]:
    """The draws of torch.randn with a CPU generator: AUTOMATIC1111's with "CPU" as its source, and diffusers' in fp32."""
    generator = torch.Generator("cpu").manual_seed(seed)
    while True:
        yield torch.randn(shape, generator=generator)


SOURCES: dict[str, Callable[[int, Shape], Iterator[Tensor]]] = {"cpu": cpu_stream, "cuda": philox.stream}
ALIASES = {"gpu": "cuda", "nv": "cuda"}  # AUTOMATIC1111's words; either way it is computed here, on the CPU


def source_name(text: str) -> str:
    name = ALIASES.get(text.lower(), text.lower())
    if name not in SOURCES:
        raise SdloraError(f"unknown source of noise {text!r}{nearest(text.lower(), (*SOURCES, *ALIASES))}")
    return name


def stream(seed: int, shape: Shape, source: str = "cpu", variation: tuple[int, float] | None = None, ensd: int = 0) -> Iterator[Tensor]:
    """The draws of one picture.  variation: another seed, and how much of its first draw takes the place of this one's, 0 to 1."""
    draws = SOURCES[source](seed, shape)
    first = next(draws)
    if variation is not None:
        other, strength = variation
        first = slerp(strength, first, next(SOURCES[source](other, shape)))
    yield first
    yield from SOURCES[source](seed + ensd, shape) if ensd else draws


def slerp(strength: float, one: Tensor, other: Tensor) -> Tensor:
    """From `one` (4, h, w) at 0 to `other` at 1 along great circles, for each channel's columns by themselves, as AUTOMATIC1111 does.

    There the axis of the batch is missing that the formula was written for, so that it acts on columns of h numbers. A picture whose
    seeds are the same stays as it is.
    """
    unit, target = (x / x.norm(dim=1, keepdim=True) for x in (one, other))
    cosine = (unit * target).sum(1, keepdim=True)
    if cosine.mean() > 0.9995:
        return one
    angle = cosine.clamp(-1, 1).acos()  # of a single row it is 0 or π, where no circle is defined
    near, far = ((share * angle).sin() / angle.sin() for share in (1 - strength, strength))
    mixed = near * one + far * other
    return torch.where(angle.sin().abs() > 1e-6, mixed, torch.lerp(one, other, strength))


def streams(seeds: Sequence[int], shape: Shape, source: str = "cpu") -> list[Iterator[Tensor]]:
    """One endless stream of standard normal draws per picture: a pure function of its seed."""
    return [stream(seed, shape, source) for seed in seeds]


def drawn(streams: Sequence[Iterator[Tensor]]) -> Tensor:
    """The next draw of every stream, (n, *shape), fp32 on the CPU."""
    return torch.stack([next(stream) for stream in streams])


def between(seeds: Sequence[int], shape: Shape, sigmas: Sequence[float], source: str = "cpu") -> Callable[[float, float], Tensor]:
    """Noise (σ, the next σ) -> (n, *shape): each picture's own Brownian path over σ's range, its increment scaled to variance 1."""
    make = partial(brownian.path, shape=shape, low=min(s for s in sigmas if s > 0), high=max(sigmas), stream=SOURCES[source])
    paths = [make(seed) for seed in seeds]

    def increment(sigma: float, after: float) -> Tensor:
        scale = abs(after - sigma) ** 0.5
        return torch.stack([(path(after) - path(sigma)) / scale for path in paths]).float()

    return increment
