"""A Strength on an adapter: parts of the adapter that each have one η at a time, so that stacking and fusing need to know no more."""

from collections.abc import Sequence

from sdlora.adapter import Adapter
from sdlora.strength import Curve, Strength, is_constant, value_at

Part = tuple[Adapter, Curve]


def parted(adapter: Adapter, strength: Strength) -> list[Part]:
    """The adapter's layers grouped by what governs their η, in the order of the layers. One number: the adapter itself."""
    groups: dict[Curve, dict[str, object]] = {}
    for name, update in adapter.layers.items():
        groups.setdefault(strength.curve(name), {})[name] = update
    return [(Adapter(layers, adapter.metadata) if len(groups) > 1 else adapter, curve) for curve, layers in groups.items()]


def at(parts: Sequence[Part], fraction: float) -> list[float]:
    """η of every part at step i of n, where `fraction` is i / n with i from 0."""
    return [value_at(curve, fraction) for _, curve in parts]


def stepwise(parts: Sequence[Part]) -> bool:
    return not all(is_constant(curve) for _, curve in parts)
