"""What is compared: a table of ways in which adapters are, or are not, on the model. A new condition is one row."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Protocol

from PIL import Image
from torch import nn

from sdlora import hardware
from sdlora.adapter import Adapter
from sdlora.apply import applied
from sdlora.benchmark.names import BASE, CONDITION_NAMES, CONTROL
from sdlora.benchmark.stock import Stock
from sdlora.benchmark.turns import Pause
from sdlora.generation import Request, generate
from sdlora.generation.generate import Always
from sdlora.models import Components


class Draw(Protocol):
    def __call__(self, wanted: Sequence[Request], pause: Pause | None = None) -> list[Image.Image]:
        """The pictures of `wanted`; `pause` is called after every step."""


@dataclass(frozen=True)
class Condition:
    """`how` is None for a model without adapters; `count` adapters share the strength, so that pictures stay pictures."""

    how: str | None
    meaning: str
    count: int = 1
    idle: bool = False  # on the model with η = 0
    stock: bool = False  # stock diffusers in place of our generation; its adapters are PEFT's
    own: bool = False  # picture i of a batch has adapter i of `count`, alone and at full strength
    compiled: bool = False  # the U-Net goes through torch.compile; its adapters are fused, as `auto` has them there


CONDITIONS = {
    BASE: Condition(None, "the model without adapter, no layer wrapped"),
    CONTROL: Condition(None, "the same once more: its ratio has to be 1, or the machine is too noisy"),
    "idle": Condition("stacked", "the adapter on the model with η = 0", idle=True),
    "fused": Condition("fused", "the adapter summed into the weights"),
    "stacked": Condition("stacked", "the adapter beside the weights, on the fly or folded (sdlora/apply/fold.py)"),
    "stacked 2": Condition("stacked", "two adapters so", count=2),
    "stacked 4": Condition("stacked", "four adapters so", count=4),
    "stacked 8": Condition("stacked", "eight adapters so", count=8),
    "own 8": Condition("stacked", "each picture of a batch with its own adapter, of eight", count=8, own=True),
    "compiled": Condition(None, "the model without adapter, its U-Net through torch.compile", compiled=True),
    "fused compiled": Condition("fused", "the adapter summed into the weights, the U-Net through torch.compile", compiled=True),
    "diffusers": Condition(None, "reference: stock diffusers without adapter, same networks, sampler and noise", stock=True),
    "PEFT": Condition("stacked", "reference: the adapter in stock diffusers by load_lora_weights and set_adapters", stock=True),
    "PEFT 4": Condition("stacked", "reference: four adapters in stock diffusers", count=4, stock=True),
    "PEFT 8": Condition("stacked", "reference: eight adapters in stock diffusers", count=8, stock=True),
    "PEFT fused": Condition("fused", "reference: the adapter in stock diffusers after fuse_lora", stock=True),
}
assert tuple(CONDITIONS) == CONDITION_NAMES
SELDOM = ("PEFT 4", "own 8", "compiled", "fused compiled")
DEFAULT = tuple(name for name in CONDITIONS if name not in SELDOM)  # an even number: each follows each other equally often


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured: a model, for each prompt its adapter and that one's companions, and the reference, if there is one.

    The U-Net of the second set, where there is one, is compiled if any condition is; for the others it is then called as it stands.
    """

    components: Components
    adapters: dict[str, tuple[Adapter, ...]]  # by prompt
    strength: float
    batch: int | None  # pictures drawn at a time; None: all of a sample together
    stock: Stock | None
    second: Components | None = None

    def sets(self, name: str, swapped: bool) -> tuple[Components, Components]:
        """(where the condition `name` is, where the base is that takes turns with it): two sets that share no tensors."""
        assert self.second is not None
        if CONDITIONS[name].stock:
            return self.components, self.second  # the reference's layers hold the first set's tensors
        if CONDITIONS[name].compiled or swapped:
            return self.second, self.components
        return self.components, self.second

    def weighted(self, name: str, prompt: str) -> list[tuple[Adapter, float]]:
        condition = CONDITIONS[name]
        eta = 0.0 if condition.idle else self.strength / (1 if condition.own else condition.count)
        return [(adapter, eta) for adapter in self.adapters[prompt][: condition.count]] if condition.how else []


@dataclass(frozen=True, eq=False)
class Active:
    """A condition while it lasts."""

    draw: Draw
    text_encoders: tuple[nn.Module, ...]
    unet: nn.Module
    decoder: nn.Module


def installed(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """`names`, and those of them that need a package which is not here."""
    missing = [name for name in names if CONDITIONS[name].stock and CONDITIONS[name].how and find_spec("peft") is None]
    return [name for name in names if name not in missing], missing


@contextmanager
def active(subject: Subject, name: str, prompt: str, on: Components | None = None, pack: bool | Always = True) -> Iterator[Active]:
    """The model of `subject` under the condition `name`, with the adapters of `prompt`; afterwards it is the base again.

    on    the set of networks, the first one by default; what is compiled is on the second, and the reference has layers of its own
    pack  as for `generate`
    """
    condition, weighted = CONDITIONS[name], subject.weighted(name, prompt)
    if condition.stock:
        assert subject.stock is not None
        with subject.stock.carrying(weighted, condition.how) as pipeline:
            yield Active(
                lambda wanted, pause=None: _in_batches(subject.stock.draw, wanted, subject.batch, pause),
                subject.stock.text_encoders,
                pipeline.unet,
                pipeline.vae.decoder,
            )
        return
    components = on or subject.components
    if condition.compiled:
        assert subject.second is not None
        components = subject.second
    texts = tuple(module for part, module in components.modules.items() if part != "unet")
    own = weighted if condition.own else []
    named = {f"own{i}": adapter for i, (adapter, _) in enumerate(own)}

    def draw(wanted: Sequence[Request], pause: Pause | None = None) -> list[Image.Image]:
        asked, batch = [tagged(request, i, own) for i, request in enumerate(wanted)], subject.batch or len(wanted)
        after = None if pause is None else lambda state: pause(state.step)
        pictures = generate(components, asked, apply="stacked", batch=batch, callback=after, named=named, pack=pack)
        return [picture.image for picture in pictures]

    with ExitStack() as block:
        if not condition.compiled:
            block.enter_context(hardware.plain(components.unet))
        if condition.how is not None and not condition.own:
            block.enter_context(applied(components.modules, weighted, condition.how))
        yield Active(draw, texts, components.unet, components.vae.decoder)


def tagged(request: Request, number: int, own: Sequence[tuple[Adapter, float]]) -> Request:
    """`request` for picture `number` of a batch, with that one's adapter in its prompt, if each has its own."""
    if not own:
        return request
    i = number % len(own)
    return replace(request, prompt=f"{request.prompt} <lora:own{i}:{own[i][1]:g}>")


def _in_batches(draw: Draw, wanted: Sequence[Request], batch: int | None, pause: Pause | None) -> list[Image.Image]:
    many = batch or len(wanted)
    return [image for i in range(0, len(wanted), many) for image in draw(wanted[i : i + many], pause)]
