"""A second set of the base's networks: for the condition that takes turns with the base, and for a U-Net that is compiled."""

import copy
import os
import shutil
from dataclasses import replace
from importlib.util import find_spec

import torch

from sdlora.errors import SdloraError
from sdlora.generation import guard
from sdlora.lean import copies
from sdlora.models import Components

GIB = 2**30
PAIRING = "or set pairing = pictures, for which one set is enough"


def made(components: Components, remedy: str = PAIRING) -> Components:
    """The same networks with tensors of their own. SdloraError where the memory does not hold them; `remedy` ends its words."""
    needed, free = size(components), guard.unused(components.device)
    if free is not None and needed > free:
        found = f"a second set of {components.name} takes {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free on {components.device}"
        raise SdloraError(f"{found}; measure where there is more memory, {remedy}")
    texts = tuple(copy.deepcopy(module) for module in components.text_encoders)
    return replace(components, text_encoders=texts, unet=copy.deepcopy(components.unet), vae=copy.deepcopy(components.vae))


def size(components: Components) -> int:
    """Bytes of all weights."""
    networks = (*components.modules.values(), components.vae)
    return sum(tensor.numel() * tensor.element_size() for module in networks for tensor in (*module.parameters(), *module.buffers()))


def packs(components: Components) -> bool:
    """Whether both of two drawings at a time pack their weights (sdlora.lean): they have to do alike, or they do not compare.

    Neither asks by itself then (generate's pack = "always"), since the second would ask when the first has made its copies. Those of
    both may take two thirds of what is free.
    """
    free = guard.unused(torch.device("cpu"))
    return free is None or 3 * copies(components.unet) <= free


def check_compiler(device: torch.device) -> None:
    """SdloraError where torch.compile has nothing to compile with: a C++ compiler for the CPU, Triton for a GPU."""
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise SdloraError("conditions that are compiled need Triton on a GPU; install triton, or leave them out")
        return
    asked = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([asked] if asked else ["g++", "clang++", "c++"])):
        where = f"CXX names {asked!r}, which is none here" if asked else "neither g++ nor clang++ is here"
        raise SdloraError(
            f"conditions that are compiled need a C++ compiler, and {where}; install one (apt install g++), or leave them out"
        )
