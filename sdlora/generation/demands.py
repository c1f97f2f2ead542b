"""What the settings of a request ask of each other: the ones that would have no effect, and numbers out of their range, are refused."""

import math
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING

from sdlora.errors import SdloraError, nearest
from sdlora.generation import sources
from sdlora.generation.canvas import RESIZES
from sdlora.generation.upscale import upscaler

if TYPE_CHECKING:
    from sdlora.generation.request import Request

CONTENTS = (
    "original",
    "fill",
    "noise",
    "nothing",
)  # of the masked part, to start from; the last two A1111 calls "latent noise", "latent nothing"

NEEDS = {  # setting -> the one without which it has no effect
    "denoise": "init",
    "exact_steps": "init",
    "resize": "init",
    "background": "init",
    "mask": "init",
    "mask_blur": "mask",
    "masked_content": "mask",
    "only_masked": "mask",
    "soft_mask": "mask",
    "hires_denoise": "hires",
    "hires_steps": "hires",
    "hires_upscaler": "hires",
    "variation_strength": "variation_seed",
    "variation_seed": "variation_strength",
}
WHAT = {
    "init": "a picture to start from",
    "mask": "which part of the picture is redrawn",
    "hires": "the factor by which the picture is enlarged",
    "variation_seed": "the seed whose noise is mixed in",
    "variation_strength": "how much of its noise is mixed in, up to 1",
}
FRACTIONS = ("denoise", "hires_denoise", "variation_strength")  # from 0 to 1


def check(request: "Request") -> None:
    """SdloraError for the first thing that is wrong. Reads no file."""
    standard = {field.name: field.default for field in fields(request) if field.default is not MISSING}
    for name, needed in NEEDS.items():
        if _given(request, name, standard) and not _given(request, needed, standard):
            raise SdloraError(f"{name} has no effect without {needed}; give {needed} ({WHAT[needed]}), or leave {name} out")
    for name in FRACTIONS:
        value = getattr(request, name)
        if value is not None and not 0 <= value <= 1:
            raise SdloraError(f"{name} is {value}; it has to be from 0 to 1")
    for name, value, choices in (("resize", request.resize, RESIZES), ("masked_content", request.masked_content, CONTENTS)):
        if value not in choices:
            raise SdloraError(f"unknown {name} {value!r}{nearest(value, choices)}")
    if request.mask_blur is not None and not (math.isfinite(request.mask_blur) and request.mask_blur >= 0):
        raise SdloraError(f"mask_blur is {request.mask_blur}; it is a number of pixels from 0 on")
    if request.only_masked is not None and request.only_masked < 0:
        raise SdloraError(f"only_masked is {request.only_masked}; it is the number of pixels around the mask that are drawn with it")
    _check_hires(request)
    sources.check_colour(request.background)


def _check_hires(request: "Request") -> None:
    if request.hires is None:
        return
    if request.init is not None:
        raise SdloraError("hires is for pictures from noise; with init set width and height to what the picture should be drawn at")
    if not (math.isfinite(request.hires) and request.hires >= 1):
        raise SdloraError(
            f"hires is {request.hires}; it is the factor by which the picture is enlarged, from 1 on (2 is usual; none is without)"
        )
    if request.hires_steps is not None and request.hires_steps < 1:
        raise SdloraError(f"hires_steps is {request.hires_steps}; it has to be at least 1; left out, it is steps")
    upscaler(request.hires_upscaler)


def _given(request: "Request", name: str, standard: dict[str, object]) -> bool:
    value = getattr(request, name)
    return value is not None and value != standard[name]
