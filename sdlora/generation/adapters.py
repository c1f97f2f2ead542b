"""The adapters of a batch while it is drawn: on the model, with the strengths that the step and the picture ask for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from sdlora import blocks, hardware
from sdlora.adapter import Adapter
from sdlora.apply import WAYS, Stack, applied, strengths
from sdlora.errors import SdloraError, nearest
from sdlora.families import V
from sdlora.generation.passes import steps
from sdlora.generation.request import Request
from sdlora.layers import TEXT
from sdlora.models import Components
from sdlora.schedule import zero_terminal
from sdlora.strength import Strength, governs
from sdlora.strength import strength as strength_of

TEXT_ENCODERS = (TEXT, f"{TEXT}_2")
AUTO = "auto"
PAYS = 8  # calls of the U-Net from which on fusing costs less than stacking; measured with the embedded base: docs/benchmarks
ZERO_SNR = "ss_zero_terminal_snr"  # in an adapter's header

Weighted = tuple[Adapter, Strength]
Wanted = tuple[Adapter | str, Strength]  # or the adapter's name among those that were given by name


@dataclass(frozen=True)
class TextState:
    """What the text encoders are for one picture at one step."""

    key: tuple[tuple[Any, ...], ...]  # equal ones encode equally
    enter: Callable[[], None]  # makes them so


@dataclass(frozen=True, eq=False)
class Active:
    """What is on the model; `face` makes it what the pictures of a call ask for."""

    texts: Sequence[Sequence[tuple[Any, Strength]]]  # what is on the text encoders for each picture, by `key`
    parts: Sequence[strengths.Part]
    stack: Stack | None  # None: fused, where strengths stay as they are

    def face(self, fraction: float, owners: Sequence[int]) -> None:
        """Row i of the next call of the U-Net is of the picture owners[i], at `fraction` of its pass: i / n at step i of n, from 0."""
        if self.stack is not None and self.parts:
            rows = {picture: self._etas(fraction, picture) for picture in dict.fromkeys(owners)}
            self.stack.set_rows([rows[picture] for picture in owners])

    def text_state(self, fraction: float, picture: int) -> TextState:
        state = ((key, *(s.at(fraction, f"{encoder}.") for encoder in TEXT_ENCODERS)) for key, s in self.texts[picture])
        return TextState(tuple(entry for entry in state if any(entry[1:])), lambda: self._enter_text(fraction, picture))

    def _enter_text(self, fraction: float, picture: int) -> None:
        if self.stack is not None and self.parts:
            self.stack.set_strengths(self._etas(fraction, picture))

    def _etas(self, fraction: float, picture: int) -> list[float]:
        return strengths.at(self.parts, fraction, picture)


def chosen(request: Request, weighted: Sequence[Weighted], named: Mapping[str, Adapter]) -> list[Wanted]:
    """All adapters for one picture: those for every picture, its own, then the ones of its prompt's tags."""
    own = [(path, strength_of(eta)) for path, eta in request.adapters if path in named]
    if len(own) < len(request.adapters) and not weighted:
        path = next(path for path, _ in request.adapters if path not in named)
        raise SdloraError(f"the request for {request.prompt!r} has the adapter {path}, which was not given; load it (load_named)")
    for tag in request.tags:
        if tag.name not in named:
            raise SdloraError(f"{tag} in the prompt, but no adapter of this name was given" + (nearest(tag.name, named) if named else ""))
    return [*weighted, *own, *((tag.name, tag.strength) for tag in request.tags)]


def same(wanted: Sequence[Wanted]) -> tuple[tuple[Any, Strength], ...]:
    """Equal for pictures with the same adapters and strengths."""
    return tuple((key(adapter), strength) for adapter, strength in wanted)


def key(adapter: Adapter | str) -> Any:
    """Which adapter it is, without holding it in memory; a name stays the same adapter's where that is loaded anew."""
    return adapter if isinstance(adapter, str) else id(adapter)


def ways(
    components: Components, pictures: Sequence[tuple[Request, Sequence[Wanted]]], apply: str, many: Callable[[Request], int]
) -> list[str]:
    """ "stacked" or "fused" for every picture; `many` says how many like this one make a full batch.

    "auto" is fused where one setting holds for all pictures or for a full batch of neighbours, and PAYS steps are to be drawn with it.
    It is stacked where a strength changes with the steps, where neighbours have different adapters, and for few steps. A compiled
    U-Net would be compiled for every set of layers that adapters are stacked on; there it is stacked where it has to be.
    """
    if apply != AUTO:
        if apply not in WAYS:
            raise SdloraError(f"unknown way to apply an adapter: {apply!r}{nearest(apply, [AUTO, *WAYS])}")
        return [apply] * len(pictures)
    result: list[str] = []
    compiled = hardware.is_compiled(components.unet)
    for wanted, run in groupby(pictures, lambda picture: same(picture[1])):
        together = [request for request, _ in run]
        enough = len(together) == len(pictures) or len(together) >= many(together[0])
        changing = any(strength.stepwise for _, strength in wanted)
        pays = not changing and (compiled or (enough and min(steps(components, request) for request in together) >= PAYS))
        result += ["fused" if pays and any(acts(strength) for _, strength in wanted) else "stacked"] * len(together)
    return result


def said(used: Sequence[str]) -> str:
    """What "auto" chose, in a line."""
    counts = {way: used.count(way) for way in dict.fromkeys(used)}
    if len(counts) == 1:
        return f"adapters are {used[0]}"
    return "adapters are " + ", ".join(f"{way} for {count} picture{'s' * (count > 1)}" for way, count in counts.items())


def acts(strength: Strength) -> bool:
    return strength.number != 0


def check(components: Components, wanted: Sequence[Wanted], apply: str) -> None:
    """SdloraError for a strength that changes with the steps where it cannot, and for one of a block that is not there."""
    for _, strength in wanted:
        if strength.vector:
            shape = components.unet.config
            blocks.check_levels(strength.vector, components.name, len(shape.down_block_types), shape.layers_per_block)
        for key in (key for key, _ in strength.curves if "." in key):
            if not any(governs(key, f"unet.{name}.") for name, _ in components.unet.named_modules()):
                raise SdloraError(f"the strength {strength} is said of {key}, a block that {components.name} has not; leave it out")
        if strength.stepwise and apply == "fused":
            raise SdloraError(f"the strength {strength} changes with the steps, which an adapter that is fused cannot; use apply = stacked")


def levelled(components: Components, wanted: Sequence[Wanted], named: Mapping[str, Adapter]) -> Components:
    """The base with a noise schedule that ends in pure noise, if it predicts v and an adapter that acts was trained with one.

    Lin et al. 2023, arXiv:2305.08891; the adapter's header says so by kohya's name for it.
    """
    if components.prediction != V or components.alphas_bar[-1] == 0:
        return components
    acting = [named[adapter] if isinstance(adapter, str) else adapter for adapter, strength in wanted if acts(strength)]
    if not any(adapter.metadata.get(ZERO_SNR) == "True" for adapter in acting):
        return components
    return replace(components, alphas_bar=zero_terminal(components.alphas_bar))


@contextmanager
def active(components: Components, wanted: Sequence[Sequence[Wanted]], named: Mapping[str, Adapter], apply: str) -> Iterator[Active]:
    """Inside, the adapters of all pictures are on the model; what is 0 throughout is left away. Fused, all pictures have the same."""
    with lent(named, [adapter for own in wanted for adapter, _ in own if isinstance(adapter, str)]) as held:
        weighted = [[(held[adapter] if isinstance(adapter, str) else adapter, strength) for adapter, strength in own] for own in wanted]
        parts = [part for part in strengths.parted(weighted) if strengths.acts(part)]
        texts = [
            [said for said, (adapter, _) in zip(same(own), on, strict=True) if textual(adapter)]
            for own, on in zip(wanted, weighted, strict=True)
        ]
        etas = strengths.at(parts, 0.0)
        with applied(components.modules, [(adapter, eta) for (adapter, _), eta in zip(parts, etas, strict=True)], apply) as stack:
            yield Active(texts, parts, stack)


def textual(adapter: Adapter) -> bool:
    return any(name.startswith(TEXT) for name in adapter.layers)


def lent(named: Mapping[str, Adapter], names: Sequence[str]) -> AbstractContextManager[Mapping[str, Adapter]]:
    """The adapters called `names`, which stay in memory inside the block where a library would let them go."""
    lend = getattr(named, "lent", None)
    return nullcontext(named) if lend is None else lend(list(dict.fromkeys(names)))
