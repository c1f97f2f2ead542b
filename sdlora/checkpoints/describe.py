"""What is to be said of an opened base model: its components, their sizes and precisions, and what is missing or too much."""

from collections import Counter
from dataclasses import dataclass

from sdlora.checkpoints import build
from sdlora.checkpoints.opened import Opened, kinds
from sdlora.stored import NAMES

WORDS = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8 (e4m3)", "F8_E5M2": "fp8 (e5m2)"}


@dataclass(frozen=True)
class Part:
    """One component."""

    name: str
    kind: str  # the class in diffusers or transformers
    tensors: int  # that the network has
    parameters: int  # that the network has
    precision: str  # of the file's tensors; the commonest first where there are several
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]  # there, with another shape than the configuration says


def parts(base: Opened) -> list[Part]:
    """U-Net, text encoders and VAE, in this order."""
    order = ["unet", *(name for name, _ in base.family.text_encoders), "vae"]
    return [_part(base, name) for name in order]


def _part(base: Opened, name: str) -> Part:
    expected, found = build.shapes(base.modules[name]), base.weights[name]
    misshapen = tuple(key for key, shape in expected.items() if key in found and found[key].shape != shape)
    counted = sum(parameter.numel() for parameter in base.modules[name].parameters())
    return Part(name, kinds(base.family)[name], len(expected), counted, _precision(base, name), tuple(base.missing(name)), misshapen)


def _precision(base: Opened, name: str) -> str:
    sizes: Counter[str] = Counter()
    for stored in base.weights[name].values():
        sizes[WORDS.get(NAMES[stored.dtype], str(stored.dtype))] += stored.count
    return " and ".join(word for word, _ in sizes.most_common()) or "—"
