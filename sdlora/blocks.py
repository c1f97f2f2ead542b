"""`lbw=0,1,…`: a factor for each block of the U-Net, counted as the LoRA block weight extension of AUTOMATIC1111 counts them.

Blocks are those of Stability's code: IN00 is the first convolution, IN03 the first downsampler, M00 the middle, and so on; BASE is the
text encoder. Files of plain LoRA have adapters on some blocks alone, so that there is a long and a short count for each U-Net:

    26  Stable Diffusion 1.x and 2.x: BASE, IN00 … IN11, M00, OUT00 … OUT11       17  of them: those with attention
    20  Stable Diffusion XL:          BASE, IN00 … IN08, M00, OUT00 … OUT08       12  of them: those with attention

A block that a short count leaves out has 0, and a layer of no block (the last convolution, the embedding of the time) keeps 1.
"""

import math
import re
from collections.abc import Sequence

from sdlora.errors import SdloraError

BASE = "BASE"  # the text encoders
LEVELS = {26: 4, 17: 4, 20: 3, 12: 3}  # numbers -> resolutions of the U-Net, each of two blocks down and three up
PLACE = re.compile(r"unet\.(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.")


def _all(levels: int) -> list[str]:
    count = range(3 * levels)
    return [BASE, *(f"IN{i:02d}" for i in count), "M00", *(f"OUT{i:02d}" for i in count)]


COUNTED: dict[int, list[str]] = {  # the blocks that the numbers of a vector are for
    26: _all(4),
    20: _all(3),
    17: [BASE, *(f"IN{i:02d}" for i in (1, 2, 4, 5, 7, 8)), "M00", *(f"OUT{i:02d}" for i in range(3, 12))],
    12: [BASE, *(f"IN{i:02d}" for i in (4, 5, 7, 8)), "M00", *(f"OUT{i:02d}" for i in range(6))],
}


def read(text: str, whole: str) -> tuple[float, ...]:
    """The numbers of "0,1,0.5,…"; SdloraError for another count, and for the names of the extension's presets."""
    words = [word.strip() for word in text.split(",")]
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        found = f"the strength {whole!r}: lbw is {text[:60]!r}, which are no numbers"
        raise SdloraError(f"{found}; write {counts()} of them with commas between (a preset's numbers are in lbwpresets.txt)") from None
    check(numbers)
    return numbers


def check(numbers: Sequence[float]) -> None:
    if len(numbers) not in COUNTED:
        raise SdloraError(f"lbw has {len(numbers)} numbers; it has {counts()}")
    if not all(map(math.isfinite, numbers)):
        raise SdloraError(f"lbw has the number {next(n for n in numbers if not math.isfinite(n))}; all have to be finite")


def counts() -> str:
    return "17 or 26 for Stable Diffusion 1.x and 2.x, 12 or 20 for XL"


def check_levels(numbers: Sequence[float], name: str, levels: int, down: int) -> None:
    """SdloraError unless the vector is for a U-Net of so many resolutions, with `down` blocks on each one's way down."""
    fitting = sorted(count for count, wanted in LEVELS.items() if wanted == levels and down == 2)
    if len(numbers) not in fitting:
        expected = f"for {name} it has {' or '.join(map(str, fitting))}" if fitting else f"{name} has other blocks than it counts"
        remedy = "give that many" if fitting else "say down, mid and up by themselves"
        raise SdloraError(f"lbw has {len(numbers)} numbers, and {expected}; {remedy}")


def factor(numbers: Sequence[float], layer: str) -> float:
    """What the strength of a layer with this canonical name ("unet.….to_q") is multiplied by."""
    block = block_of(layer)
    if block is None:
        return 1.0
    return dict(zip(COUNTED[len(numbers)], numbers, strict=True)).get(block, 0.0)


def block_of(layer: str) -> str | None:
    """IN01 for unet.down_blocks.0.attentions.0.…; None for a layer of no block."""
    if not layer.startswith("unet."):
        return BASE
    if layer == "unet.conv_in" or layer.startswith("unet.mid_block."):
        return "IN00" if layer == "unet.conv_in" else "M00"
    match = PLACE.match(layer)
    if match is None:
        return None
    way, level, kind, position = match[1], int(match[2]), match[3], int(match[4])
    if way == "down":
        return f"IN{3 * level + (3 if kind == 'downsamplers' else 1 + position):02d}"
    return f"OUT{3 * level + (2 if kind == 'upsamplers' else position):02d}"
