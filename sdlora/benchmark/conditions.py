"""What is compared: a table of ways in which adapters are, or are not, on the model. A new condition is one row."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec

from PIL import Image
from torch import nn

from sdlora.adapter import Adapter
from sdlora.apply import applied
from sdlora.benchmark.names import BASE, CONDITION_NAMES, CONTROL
from sdlora.benchmark.stock import Stock
from sdlora.generation import Request, generate
from sdlora.models import Components

Draw = Callable[[Sequence[Request]], list[Image.Image]]


@dataclass(frozen=True)
class Condition:
    """`how` is None for a model without adapters; `count` adapters share the strength, so that pictures stay pictures."""

    how: str | None
    meaning: str
    count: int = 1
    idle: bool = False  # on the model with η = 0
    stock: bool = False  # stock diffusers in place of our generation; its adapters are PEFT's
    own: bool = False  # picture i of a batch has adapter i of `count`, alone and at full strength


CONDITIONS = {
    BASE: Condition(None, "the model without adapter, no layer wrapped"),
    CONTROL: Condition(None, "the same once more: its ratio has to be 1, or the machine is too noisy"),
    "idle": Condition("stacked", "the adapter on the model with η = 0", idle=True),
    "fused": Condition("fused", "the adapter summed into the weights"),
    "stacked": Condition("stacked", "the adapter on the fly beside the weights"),
    "stacked 2": Condition("stacked", "two adapters on the fly", count=2),
    "stacked 4": Condition("stacked", "four adapters on the fly", count=4),
    "stacked 8": Condition("stacked", "eight adapters on the fly", count=8),
    "own 8": Condition("stacked", "each picture of a batch with its own adapter, of eight", count=8, own=True),
    "diffusers": Condition(None, "reference: stock diffusers without adapter, same networks, sampler and noise", stock=True),
    "PEFT": Condition("stacked", "reference: the adapter in stock diffusers by load_lora_weights and set_adapters", stock=True),
    "PEFT 4": Condition("stacked", "reference: four adapters in stock diffusers", count=4, stock=True),
    "PEFT 8": Condition("stacked", "reference: eight adapters in stock diffusers", count=8, stock=True),
    "PEFT fused": Condition("fused", "reference: the adapter in stock diffusers after fuse_lora", stock=True),
}
assert tuple(CONDITIONS) == CONDITION_NAMES
DEFAULT = tuple(name for name in CONDITIONS if name not in ("PEFT 4", "own 8"))  # an even number: each follows each other equally often


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured: a model, for each prompt its adapter and that one's companions, and the reference, if there is one."""

    components: Components
    adapters: dict[str, tuple[Adapter, ...]]  # by prompt
    strength: float
    batch: int | None  # pictures drawn at a time; None: all of a sample together
    stock: Stock | None

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
def active(subject: Subject, name: str, prompt: str) -> Iterator[Active]:
    """The model of `subject` under the condition `name`, with the adapters of `prompt`; afterwards it is the base again."""
    condition, weighted = CONDITIONS[name], subject.weighted(name, prompt)
    if condition.stock:
        assert subject.stock is not None
        with subject.stock.carrying(weighted, condition.how) as pipeline:
            yield Active(
                lambda wanted: _in_batches(subject.stock.draw, wanted, subject.batch),  # type: ignore[union-attr]
                subject.stock.text_encoders,
                pipeline.unet,
                pipeline.vae.decoder,
            )
        return
    components = subject.components
    texts = tuple(module for part, module in components.modules.items() if part != "unet")
    own = weighted if condition.own else []
    named = {f"own{i}": adapter for i, (adapter, _) in enumerate(own)}

    def draw(wanted: Sequence[Request]) -> list[Image.Image]:
        asked = [tagged(request, i, own) for i, request in enumerate(wanted)]
        pictures = generate(components, asked, apply="stacked", batch=subject.batch or len(wanted), named=named)
        return [picture.image for picture in pictures]

    found = Active(draw, texts, components.unet, components.vae.decoder)
    if condition.how is None or condition.own:
        yield found
    else:
        with applied(components.modules, weighted, condition.how):
            yield found


def tagged(request: Request, number: int, own: Sequence[tuple[Adapter, float]]) -> Request:
    """`request` for picture `number` of a batch, with that one's adapter in its prompt, if each has its own."""
    if not own:
        return request
    i = number % len(own)
    return replace(request, prompt=f"{request.prompt} <lora:own{i}:{own[i][1]:g}>")


def _in_batches(draw: Draw, wanted: Sequence[Request], batch: int | None) -> list[Image.Image]:
    many = batch or len(wanted)
    return [image for i in range(0, len(wanted), many) for image in draw(wanted[i : i + many])]
