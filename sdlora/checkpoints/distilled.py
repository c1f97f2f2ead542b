"""Distilled models in one file, which have fewer layers than the family whose names they share; diffusers' folders say so themselves."""

import re
from collections.abc import Iterable

from sdlora.checkpoints import unet
from sdlora.errors import SdloraError
from sdlora.stored import Contents

DISTILLED = {  # by the transformers of the U-Net's way down, in its order; where those are fewer or shorter than the family's
    (2, 2, 4, 4): "SSD-1B, a distilled Stable Diffusion XL",
    (1, 1, 2, 2): "Segmind Vega, a distilled Stable Diffusion XL",
    (2, 5): "KOALA 700M, a distilled Stable Diffusion XL",
    (2, 6): "KOALA 1B, a distilled Stable Diffusion XL",
    (1, 1, 1): "a distilled Stable Diffusion 1.x (BK-SDM, small-sd or tiny-sd)",
}
DOWN = re.compile(re.escape(unet.PREFIX) + r"input_blocks\.(\d+)\.1\.transformer_blocks\.(\d+)\.")


def refuse(file: Contents) -> None:
    """SdloraError for a U-Net that is known to have fewer layers than its family's."""
    what = DISTILLED.get(_depths(file.tensors))
    if what:
        raise SdloraError(f"{file.path} is {what}: its U-Net has fewer layers than the model that it was distilled from; take that one")


def _depths(keys: Iterable[str]) -> tuple[int, ...]:
    """How many transformer blocks each attention of the U-Net's way down has, in its order."""
    found: dict[int, set[int]] = {}
    for key in keys:
        match = DOWN.match(key)
        if match:
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    return tuple(len(found[place]) for place in sorted(found))
