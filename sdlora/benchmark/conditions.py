"""What is compared: a table of ways in which an adapter is, or is not, on the model. A new condition is one row."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sdlora.adapter import Adapter
from sdlora.apply import applied
from sdlora.models import Components

BASE, CONTROL = "base", "base again"


@dataclass(frozen=True)
class Condition:
    """`how` is None for the untouched model."""

    how: str | None
    meaning: str


CONDITIONS = {
    BASE: Condition(None, "the model without adapter, no layer wrapped"),
    CONTROL: Condition(None, "the same once more: its ratio has to be 1, or the machine is too noisy"),
    "stacked": Condition("stacked", "the adapter on the fly beside the weights"),
    "fused": Condition("fused", "the adapter summed into the weights"),
}


@contextmanager
def active(components: Components, name: str, weighted: list[tuple[Adapter, float]]) -> Iterator[None]:
    """The model of `components` under the condition `name`; afterwards it is the base again."""
    how = CONDITIONS[name].how
    if how is None:
        yield
    else:
        with applied(components.modules, weighted, how):
            yield
