"""A picture is drawn in passes: one from noise; or one from a picture (img2img); or one from noise and one from what that made (hires).

Sizes and steps are AUTOMATIC1111's (modules/processing.py and sd_samplers_common.py, setup_img2img_steps).
"""

from dataclasses import dataclass

from sdlora.errors import SdloraError
from sdlora.generation import sources
from sdlora.generation.request import Request
from sdlora.models import Components

ALMOST_ONE = 0.999  # what A1111 takes a denoise of 1 for

Side = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True)
class Pass:
    """Requests of equal passes can be drawn together."""

    size: Side
    levels: int  # noise levels of the whole schedule
    skipped: int = 0  # of them: the pass starts at the level behind
    upscaled: bool = False  # from the picture of the pass before

    @property
    def steps(self) -> int:
        return self.levels - self.skipped


def passes(components: Components, request: Request) -> tuple[Pass, ...]:
    """At least one. SdloraError for a size that the VAE cannot draw."""
    first = size(components, request)
    if request.init is not None:
        return (img2img(first, request.steps, request.denoising, request.exact_steps),)
    plain = Pass(first, request.steps)
    if request.hires is None:
        return (plain,)
    factor = components.factor
    height, width = (int(side * request.hires) // factor * factor for side in first)
    second = img2img((height, width), request.hires_steps or request.steps, request.hires_denoising, exact=True)
    return plain, Pass(second.size, second.levels, second.skipped, upscaled=True)


def img2img(size: Side, steps: int, denoise: float, exact: bool) -> Pass:
    """The last steps of a schedule.

    exact  `steps` of them, and as many levels above them as `denoise` leaves out; else of `steps` levels the share `denoise`,
           rounded down, and one more, as A1111 does.

    A denoise of 0 has none at all: what comes out is what the VAE makes of the picture. A denoise of 1 goes through all levels: a
    picture from noise, but for what the highest level, σ = 14.6 for Stable Diffusion, lets through of the init picture.
    """
    if denoise == 0:
        return Pass(size, steps, steps)
    if exact:
        levels = int(steps / min(denoise, ALMOST_ONE))
        return Pass(size, levels, levels - steps)
    return Pass(size, steps, steps - 1 - int(min(denoise, ALMOST_ONE) * steps))


def steps(components: Components, request: Request) -> int:
    """The sampler's steps in all passes."""
    return sum(one.steps for one in passes(components, request))


def largest(walk: tuple[Pass, ...]) -> int:
    """Pixels of the largest pass."""
    return max(one.size[0] * one.size[1] for one in walk)


def size(components: Components, request: Request) -> Side:
    """(height, width) in pixels of the first pass; SdloraError unless the VAE's factor divides them.

    What is not asked for is what the base was trained on; with an init picture that picture's, rounded down, and where one side is
    asked for, the other in proportion.
    """
    factor = components.factor
    height, width = _asked(components, request)
    for name, side in (("height", height), ("width", width)):
        if side % factor and not request.floor:
            near = max(factor, round(side / factor) * factor)
            found = f"{name} {side} does not fit {components.name}: it has to be a multiple of {factor}"
            raise SdloraError(f"{found}, {near} for example; or set floor, which rounds it down to {max(factor, side // factor * factor)}")
    return max(factor, height // factor * factor), max(factor, width // factor * factor)


def _asked(components: Components, request: Request) -> Side:
    if request.init is None or request.only_masked is not None:
        return request.height or components.size, request.width or components.size
    if request.height and request.width:
        return request.height, request.width
    height, width = sources.extent(request.init)
    factor = components.factor

    def down(side: float) -> int:
        return max(factor, int(side) // factor * factor)

    if request.width:
        return down(height * request.width / width), request.width
    if request.height:
        return request.height, down(width * request.height / height)
    return down(height), down(width)
