"""The adapters of a batch while it is drawn: on the model, with the strengths that the step asks for."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from sdlora import hardware
from sdlora.adapter import Adapter
from sdlora.apply import Stack, applied, strengths
from sdlora.errors import SdloraError, nearest
from sdlora.families import V
from sdlora.generation.request import Request
from sdlora.layers import TEXT
from sdlora.models import Components
from sdlora.schedule import zero_terminal
from sdlora.strength import Strength

TEXT_ENCODERS = (TEXT, f"{TEXT}_2")
ZERO_SNR = "ss_zero_terminal_snr"  # in an adapter's header

Weighted = tuple[Adapter, Strength]


@dataclass(frozen=True, eq=False)
class Active:
    """What is on the model; `enter` makes it what a step asks for."""

    weighted: Sequence[Weighted]
    parts: Sequence[strengths.Part]
    stack: Stack | None  # None: fused, where strengths stay as they are
    steps: int

    def enter(self, step: int) -> None:
        """`step` counts from 0."""
        if self.stack is not None and strengths.stepwise(self.parts):
            self.stack.set_strengths(strengths.at(self.parts, step / self.steps))

    def text_state(self, step: int) -> tuple[tuple[int | float, ...], ...]:
        """What the text encoders are at `step`: equal states encode equally."""
        textual = [(adapter, strength) for adapter, strength in self.weighted if any(name.startswith(TEXT) for name in adapter.layers)]
        state = ((id(a), *(strength.at(step / self.steps, f"{encoder}.") for encoder in TEXT_ENCODERS)) for a, strength in textual)
        return tuple(entry for entry in state if any(entry[1:]))


def chosen(request: Request, weighted: Sequence[Weighted], named: Mapping[str, Adapter]) -> list[Weighted]:
    """All adapters for one picture: those for every picture, then the ones of its prompt's tags."""
    for tag in request.tags:
        if tag.name not in named:
            raise SdloraError(f"{tag} in the prompt, but no adapter of this name was given" + (nearest(tag.name, named) if named else ""))
    return [*weighted, *((named[tag.name], tag.strength) for tag in request.tags)]


def same(weighted: Sequence[Weighted]) -> tuple[tuple[int, Strength], ...]:
    """Equal for what can be drawn in one batch."""
    return tuple((id(adapter), strength) for adapter, strength in weighted)


def check(components: Components, weighted: Sequence[Weighted], apply: str) -> None:
    """SdloraError for a strength that changes with the steps where it cannot, and for adapters that a compiled U-Net would not see."""
    for _, strength in weighted:
        if strength.stepwise and apply != "stacked":
            raise SdloraError(
                f"the strength {strength} changes with the steps, which an adapter that is {apply} cannot; use apply = stacked"
            )
    if apply != "fused" and hardware.is_compiled(components.unet) and acting(weighted):
        raise SdloraError("a compiled U-Net does not see adapters that come and go; take apply fused, or leave compile out")


def acting(weighted: Sequence[Weighted]) -> list[strengths.Part]:
    """The parts of the adapters, without those that are 0 throughout."""
    return [part for adapter, strength in weighted for part in strengths.parted(adapter, strength) if any(p.value for p in part[1])]


def levelled(components: Components, weighted: Sequence[Weighted]) -> Components:
    """The base with a noise schedule that ends in pure noise, if it predicts v and an adapter that acts was trained with one.

    Lin et al. 2023, arXiv:2305.08891; the adapter's header says so by kohya's name for it.
    """
    if components.prediction != V or components.alphas_bar[-1] == 0:
        return components
    if not any(adapter.metadata.get(ZERO_SNR) == "True" and acting([(adapter, eta)]) for adapter, eta in weighted):
        return components
    return replace(components, alphas_bar=zero_terminal(components.alphas_bar))


@contextmanager
def active(components: Components, weighted: Sequence[Weighted], apply: str, steps: int) -> Iterator[Active]:
    """Inside, the adapters are on the model; what is 0 throughout is left away."""
    parts = acting(weighted)
    with applied(
        components.modules, [(adapter, eta) for (adapter, _), eta in zip(parts, strengths.at(parts, 0.0), strict=True)], apply
    ) as on:
        yield Active(weighted, parts, on, steps)
