"""Strengths on adapters: parts of adapters that have one η for a step and picture, so that stacking and fusing need know no more."""

from collections.abc import Sequence

from sdlora.adapter import Adapter
from sdlora.strength import Curve, Strength, constant, is_constant, value_at

ABSENT = constant(0.0)

Part = tuple[Adapter, tuple[Curve, ...]]  # a curve for each picture


def parted(pictures: Sequence[Sequence[tuple[Adapter, Strength]]]) -> list[Part]:
    """The adapters of all pictures, each once (or as often as one picture has it), in parts, in the order of the layers.

    A part holds the layers that are governed by the same curve in each picture; one number is the adapter itself. A picture without the
    adapter has 0.
    """
    uses: dict[tuple[int, int], tuple[Adapter, list[Strength | None]]] = {}
    for i, weighted in enumerate(pictures):
        times: dict[int, int] = {}
        for adapter, strength in weighted:
            nth = times[id(adapter)] = times.get(id(adapter), 0) + 1
            uses.setdefault((id(adapter), nth), (adapter, [None] * len(pictures)))[1][i] = strength
    return [part for adapter, strengths in uses.values() for part in _parts(adapter, strengths)]


def acts(part: Part) -> bool:
    """Whether it is anything but 0, anywhere and ever."""
    return any(piece.value for curve in part[1] for piece in curve)


def _parts(adapter: Adapter, strengths: Sequence[Strength | None]) -> list[Part]:
    groups: dict[tuple[Curve, ...], dict[str, object]] = {}
    distinct = dict.fromkeys(strengths)
    for name, update in adapter.layers.items():
        curves = {strength: ABSENT if strength is None else strength.curve(name) for strength in distinct}
        groups.setdefault(tuple(curves[strength] for strength in strengths), {})[name] = update
    return [(Adapter(layers, adapter.metadata) if len(groups) > 1 else adapter, curves) for curves, layers in groups.items()]


def at(parts: Sequence[Part], fraction: float, picture: int = 0) -> list[float]:
    """η of every part for a picture at step i of n, where `fraction` is i / n with i from 0."""
    return [value_at(curves[picture], fraction) for _, curves in parts]


def stepwise(parts: Sequence[Part]) -> bool:
    return not all(is_constant(curve) for _, curves in parts for curve in curves)
