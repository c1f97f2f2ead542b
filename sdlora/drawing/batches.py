"""Which requests are drawn together, in as few batches as possible.

In a run, batches are made of all that is asked for, and drawn whole: so a picture has the same neighbours, and with them the same last
digits, in whatever order, after whatever interruption and by however many processes it is drawn.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sdlora.generation import Request
from sdlora.generation.generate import POSITIONS, size
from sdlora.models import Components

# What has a value of its own in every picture and yet lets pictures share a batch; sampler, schedule and their options are in `method`.
FREE = {"prompt", "negative", "seed", "guidance", "clip_skip", "emphasis", "original", "crop", "target", "adapters", "tagged"}
IN_METHOD = {"sampler", "schedule", "eta", "s_churn", "s_tmin", "s_tmax", "s_noise"}
NAMES = tuple(f.name for f in fields(Request) if f.name not in FREE | IN_METHOD)


def batches(components: Components, wanted: Sequence[Request], apply: str, batch: int | None = None) -> list[list[int]]:
    """The places of the requests, batch by batch; groups and their members in the order that they came in.

    apply  fused: pictures of a batch have the same adapters and strengths. batch: the most that are drawn together.
    """
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(wanted):
        groups.setdefault(repr(_alike(request, apply)), []).append(i)
    result = []
    for group in groups.values():
        height, width = size(components, wanted[group[0]])
        most = batch or max(1, POSITIONS * components.factor**2 // (height * width))
        result += [group[i : i + most] for i in range(0, len(group), most)]
    return result


def _alike(request: Request, apply: str) -> tuple[Any, ...]:
    """Equal for requests that can be in one batch."""
    adapters = (request.adapters, request.tags) if apply == "fused" else ()
    return request.method, request.guided, adapters, *(getattr(request, name) for name in NAMES)
