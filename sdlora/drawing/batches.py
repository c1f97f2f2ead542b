"""Which requests are drawn together, in as few batches as possible.

In a run, batches are made of all that is asked for, and drawn whole: so a picture has the same neighbours, and with them the same last
digits, in whatever order, after whatever interruption and by however many processes it is drawn.
"""

from collections.abc import Sequence
from itertools import chain

from sdlora.generation import Request
from sdlora.generation.adapters import Wanted
from sdlora.generation.generate import alike, check_batch, full
from sdlora.models import Components
from sdlora.strength import strength


def batches(components: Components, wanted: Sequence[Request], apply: str, batch: int | None = None) -> list[list[int]]:
    """The places of the requests, batch by batch; groups and their members in the order that they came in.

    apply  fused: pictures of a batch have the same adapters and strengths. batch: the most that are drawn together.
    """
    check_batch(batch)
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(wanted):
        groups.setdefault(repr(alike(components, request, _adapters(request), apply)), []).append(i)
    parts = ((group, batch or full(components, wanted[group[0]])) for group in groups.values())
    return list(chain.from_iterable(([group[i : i + most] for i in range(0, len(group), most)] for group, most in parts)))


def _adapters(request: Request) -> list[Wanted]:
    """By the names that they are given to `generate` by."""
    return [*((path, strength(eta)) for path, eta in request.adapters), *((tag.name, tag.strength) for tag in request.tags)]
