"""Adapters on a model: trainable, stacked on the fly, or fused into the weights."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from sdlora.adapter import Adapter
from sdlora.apply.constant import constant, cross_attention
from sdlora.apply.dropout import dropping
from sdlora.apply.fold import folding
from sdlora.apply.fuse import fused
from sdlora.apply.inject import attach, carriers, eject, extract, inject, suspended
from sdlora.apply.stack import Stack, stacked
from sdlora.apply.targets import TARGETS, Part, by_target, plan, select
from sdlora.errors import SdloraError, nearest

WAYS = {"stacked": stacked, "fused": fused}


def applied(modules: Mapping[str, nn.Module], weighted: Sequence[tuple[Adapter, float]], how: str) -> AbstractContextManager[Any]:
    """`stacked` or `fused`, by name."""
    if how not in WAYS:
        raise SdloraError(f"unknown way to apply an adapter: {how!r}{nearest(how, WAYS)}")
    return WAYS[how](modules, weighted)


__all__ = [
    "TARGETS",
    "WAYS",
    "Part",
    "Stack",
    "applied",
    "attach",
    "by_target",
    "carriers",
    "constant",
    "cross_attention",
    "dropping",
    "eject",
    "extract",
    "folding",
    "fused",
    "inject",
    "plan",
    "select",
    "stacked",
    "suspended",
]
