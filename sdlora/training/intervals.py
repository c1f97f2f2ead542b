"""How often something is done: every so many steps, or every so many epochs."""

import math
import re

_EPOCHS = re.compile(r"(\d+) epochs?")


def valid(every: int | str) -> bool:
    """Whether `every` is a number of steps ("100", 0 for never), or "1 epoch", "2 epochs"."""
    return isinstance(every, int) or bool((found := _EPOCHS.fullmatch(every)) and int(found[1]) > 0)


def steps(every: int | str, images: int, samples_per_step: int) -> int:
    """`every` in optimiser steps; an epoch is the fewest steps that show as many pictures as
    there are `images`. 0: never."""
    if isinstance(every, int):
        return every
    found = _EPOCHS.fullmatch(every)
    assert found
    return max(1, math.ceil(int(found[1]) * images / samples_per_step))


def due(step: int, every: int, last: int) -> bool:
    """Whether it is time after step `step`; the last step always is."""
    return step == last or (every > 0 and step > 0 and step % every == 0)
