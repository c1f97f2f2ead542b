"""File dialects: dict[str, Tensor] ⇄ layers. One dialect a file, which knows one key at a time; here they are brought together."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from sdlora import recognise
from sdlora.errors import SdloraError
from sdlora.formats import alphas, diffusers, foreign, kohya, onetrainer, peft, tucker
from sdlora.kinds.lora import Lora
from sdlora.layers import finite

Split = Callable[[str], tuple[str, str, str] | None]  # one key -> canonical layer name, field (down, mid, up, alpha), dialect

EXAMPLES = 3  # keys in a message
DIALECTS: tuple[Split, ...] = (kohya.split, peft.split, diffusers.split, onetrainer.split)


@dataclass(frozen=True)
class Format:
    """A dialect that is written."""

    encode: Callable[[Mapping[str, Any], str | None], dict[str, Tensor]]  # layers and family
    header: Callable[[Mapping[str, Any]], dict[str, str]]  # what this dialect says about the layers in the file's header


FORMATS = {
    "kohya": Format(kohya.encode, kohya.header),
    "diffusers": Format(diffusers.encode, diffusers.header),
    "peft": Format(peft.encode, peft.header),
}


@dataclass(frozen=True)
class Decoded:
    layers: dict[str, Lora]  # by canonical name, sorted
    dialect: str  # "kohya", "kohya-sgm", "diffusers", "diffusers-old", "peft", "onetrainer", or several joined by +
    surplus: tuple[str, ...]  # keys that no dialect knows


def decode(tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> Decoded:
    """All layers of a file, from its keys alone; SdloraError where there is none, or where a layer is not whole or of another kind.

    One pass over the keys. α is the tensor's, else the header's, else r; 0 also means r (old files of kohya's).
    """
    fields: dict[str, dict[str, str]] = {}
    dialects: Counter[str] = Counter()
    surplus = []
    for key in tensors:
        found = split(key)
        if found is None:
            surplus.append(key)
            continue
        name, field, dialect = found
        own = fields.setdefault(name, {})
        if field in own:
            raise SdloraError(f"{own[field]} and {key} are both of the layer {name}; a file has to hold each layer once")
        own[field] = key
        dialects[dialect] += field != "alpha"
    foreign.refuse(surplus)
    if not dialects.total():
        raise SdloraError(_no_lora(tensors))
    alpha = alphas.reader(header or {})
    layers = {name: _lora(name, fields[name], tensors, alpha) for name in sorted(fields)}
    return Decoded(layers, _dialect(dialects), tuple(surplus))


@lru_cache(1 << 14)  # files of one kind have the same keys: SDXL's, with everything adapted, about 4,000
def split(key: str) -> tuple[str, str, str] | None:
    """What the first dialect that knows the key makes of it."""
    for dialect in DIALECTS:
        found = dialect(key)
        if found is not None:
            return found
    return None


def _lora(name: str, own: Mapping[str, str], tensors: Mapping[str, Tensor], header: Callable[[str, int], float | None]) -> Lora:
    missing = {"down", "up"} - own.keys()
    if missing:
        raise SdloraError(
            f"{name} has {' and '.join(own.values())} but no {' and no '.join(sorted(missing))} matrix; the file is not complete"
        )
    a, b = tensors[own["down"]], tensors[own["up"]]
    if "mid" in own:
        a = tucker.down(name, a, tensors[own["mid"]])
    _check(name, a, b)
    rank = a.shape[0]
    if "alpha" in own:
        return Lora(a, b, _number(own["alpha"], tensors[own["alpha"]]) or float(rank))
    alpha = header(name, rank)
    return Lora(a, b, float(rank) if alpha is None else alpha)


def _number(key: str, tensor: Tensor) -> float:
    if tensor.numel() != 1:
        raise SdloraError(f"{key} is no number but {tuple(tensor.shape)}")
    number = float(tensor.item())
    if not math.isfinite(number):
        raise SdloraError(f"{key} is {number}; the file is damaged")
    return number


def _check(name: str, a: Tensor, b: Tensor) -> None:
    whole = a.dim() in (2, 4) and b.dim() == a.dim() and a.shape[0] == b.shape[1] > 0 and tuple(b.shape[2:]) in ((), (1, 1))
    if not (whole and a.is_floating_point() and b.is_floating_point()):
        raise SdloraError(f"{name} is no pair of LoRA matrices: down {_shape(a)}, up {_shape(b)}")
    if not finite(a, b):
        raise SdloraError(f"{name} has numbers that are not finite (NaN or ∞): the training that made it diverged, or the file is damaged")


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _dialect(found: Counter[str]) -> str:
    """Text encoders have no blocks, so that a file with sgm's blocks is kohya's too."""
    names = {name for name, number in found.items() if number}
    return "+".join(sorted(names - {"kohya"} if "kohya-sgm" in names else names))


def _no_lora(tensors: Mapping[str, Tensor]) -> str:
    if not tensors:
        return "it holds no tensors"
    what = recognise.what(tensors) or recognise.part(tensors)
    if what and what != recognise.ADAPTER:
        return f"it is {what}, not an adapter"
    examples = ", ".join(sorted(tensors)[:EXAMPLES])
    return f"none of its {len(tensors)} tensors is a LoRA matrix (….lora_down.weight or ….lora_A.weight), but for example {examples}"
