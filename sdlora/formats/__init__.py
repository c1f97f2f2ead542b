"""File dialects: dict[str, Tensor] ⇄ layers, one dialect a file, one row of the table each."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdlora.errors import SdloraError
from sdlora.formats import kohya, peft


@dataclass(frozen=True)
class Format:
    encode: Callable[[Mapping[str, Any]], dict[str, Tensor]]
    decode: Callable[[Mapping[str, Tensor], Iterable[str], Mapping[str, str]], dict[str, Any]]
    header: Callable[[Mapping[str, Any]], dict[str, str]]  # what this dialect says about the layers in the file's header
    recognises: Callable[[str], bool]  # one key of a file


FORMATS = {
    "kohya": Format(kohya.encode, kohya.decode, kohya.header, kohya.recognises),
    "peft": Format(peft.encode, peft.decode, peft.header, peft.recognises),
}


def detect(tensors: Iterable[str]) -> str:
    """The dialect in which these keys are written, a key of FORMATS; SdloraError where there is none."""
    keys = list(tensors)
    for name, dialect in FORMATS.items():
        if any(dialect.recognises(key) for key in keys):
            return name
    examples = "\n".join(f"    {key}" for key in sorted(keys)[:3])
    raise SdloraError(
        f"none of its {len(keys)} tensors is a LoRA matrix (….lora_down.weight or ….lora_A.weight):\n{examples}\n"
        "It is a whole model, or an adapter of a kind that this version of sdlora does not read"
    )
