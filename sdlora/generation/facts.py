"""What the record says of a picture that is not simply drawn from noise: the settings by their names in Request, as they took effect.

In AUTOMATIC1111's infotext `denoise` and `hires_denoise` are "Denoising strength", `hires` is "Hires upscale", and the others are
called as here, in its way of writing ("Hires steps", "Mask blur", "Masked content", "Variation seed strength", "ENSD").
"""

from typing import Any

from sdlora.generation import sources, starts
from sdlora.generation.request import Request
from sdlora.models import Components


def facts(components: Components, request: Request) -> dict[str, Any]:
    """Only what was asked for. The init picture and the mask have to be files, or to be in memory still."""
    return {**_noise(request), **_init(request), **_mask(components, request), **_hires(request)}


def _noise(request: Request) -> dict[str, Any]:
    variation = request.variation
    seeds = {"variation_seed": variation[0], "variation_strength": variation[1]} if variation else {}
    return seeds | ({"ensd": request.ensd} if request.ensd else {})


def _init(request: Request) -> dict[str, Any]:
    if request.init is None:
        return {}
    found = {"init": sources.described(request.init), "denoise": request.denoising, "resize": request.resize}
    background = {"background": request.background} if request.background != "white" else {}
    return found | background | ({"exact_steps": True} if request.exact_steps else {})


def _mask(components: Components, request: Request) -> dict[str, Any]:
    if request.mask is None:
        return {}
    alpha = request.mask == sources.ALPHA
    found = {
        "mask": sources.ALPHA if alpha else sources.described(request.mask),
        "mask_blur": starts.blur(components, request),
        "masked_content": request.masked_content,
    }
    found |= {"soft_mask": True} if request.soft_mask else {}
    return found if request.only_masked is None else {**found, "only_masked": request.only_masked}


def _hires(request: Request) -> dict[str, Any]:
    if request.hires is None:
        return {}
    found = {"hires": request.hires, "hires_denoise": request.hires_denoising, "hires_upscaler": request.upscaler.name}
    return found if request.hires_steps is None else {**found, "hires_steps": request.hires_steps}
