"""The noise of a batch: fp32, and each picture from generators of its own, so that it does not depend on device, precision or batch.

The first draw of a picture's stream is what it starts from; an ancestral sampler goes on with the same stream, as AUTOMATIC1111 does.
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


def streams(seeds: Sequence[int], shape: Shape, source: str = "cpu") -> list[Iterator[Tensor]]:
    """One endless stream of standard normal draws per picture: a pure function of its seed."""
    return [SOURCES[source](seed, shape) for seed in seeds]


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
