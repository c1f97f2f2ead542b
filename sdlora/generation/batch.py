"""One batch is drawn: its passes one after the other, from noise or from pictures, to pixels."""

from collections.abc import Callable
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from sdlora import hardware
from sdlora.apply import constant, cross_attention, folding
from sdlora.conditioning import Sizes, time_ids
from sdlora.errors import SdloraError
from sdlora.generation import guard, noise, starts
from sdlora.generation.adapters import Active
from sdlora.generation.conditions import Texts
from sdlora.generation.course import Course
from sdlora.generation.denoiser import denoiser, keeping, one_timestep
from sdlora.generation.passes import Pass, Side, passes, size
from sdlora.generation.request import Request
from sdlora.generation.sampler import State, beginning, sample
from sdlora.generation.samplers import Noise
from sdlora.generation.schedules import Schedule, schedule
from sdlora.generation.starts import Origin, Start
from sdlora.latents import decode
from sdlora.lean import lean, pays
from sdlora.models import Components

Callback = Callable[[State], None]
Known = Callable[[Origin], Start]


def sizes(components: Components, request: Request, side: Side | None = None) -> Sizes:
    """What SDXL is told of the picture: unless the request says otherwise, that it was always of this size and is whole.

    side  what the pass draws; None is the first pass's.
    """
    side = side or size(components, request)
    return Sizes(request.original or side, request.crop, request.target or side)


@torch.inference_mode()
def draw(
    components: Components,
    requests: list[Request],
    active: Active,
    texts: Texts,
    known: Known,
    callback: Callback | None,
    offload: torch.device | None,
    room: int = 0,
) -> list[Image.Image | SdloraError]:
    """The pictures, with an error in the place of one that turned into NaN. `texts` and `known` remember what is encoded already.

    room  bytes for copies of weights by sdlora.lean, where it pays within one picture: whatever else is in the batch, the same is done;
          what is left is for layers that adapters fold (apply.folding)
    """
    walk, device = passes(components, requests[0]), texts.device
    begun: list[Start] = []
    if requests[0].init is not None:
        with hardware.resident([components.vae], offload):
            begun = [known(starts.origin(components, request)) for request in requests]
    with hardware.resident(components.text_encoders, offload):
        course = Course(requests, texts, active, walk)
    original, redrawn = starts.originals(requests, begun), starts.redrawn(begun)
    watch, total, done = guard.Finite(len(requests), device), sum(one.steps for one in walk), 0

    def after(state: State) -> None:
        watch.see(state.x)
        course.enter(done + state.step)
        if callback:
            callback(replace(state, step=done + state.step, steps=total))

    for one in walk:
        if one.upscaled and original is not None:
            with hardware.resident([components.vae], offload):
                original = _upscaled(components, requests, original, one)
        with (
            hardware.resident([components.unet], offload),
            lean(components.unet, room if pays(components.unet, one.steps) else 0) as taken,
            folding(components.unet, room - taken),
        ):
            original = _pass(components, requests, one, course, device, original, redrawn, after)
        done += one.steps
    assert original is not None  # a picture without init has a pass from noise
    lost = watch.errors(components, requests, total)
    with hardware.resident([components.vae], offload), lean(components.vae.decoder, room if pays(components.vae.decoder, 1) else 0):
        return [lost.get(i) or _finished(components, original[i : i + 1], r, begun[i] if begun else None) for i, r in enumerate(requests)]


def levels(components: Components, request: Request, one: Pass) -> Schedule:
    """All noise levels of the schedule that a pass goes through the end of. SdloraError if it does not have that many."""
    method = request.method
    try:
        return schedule(method.schedule, components.alphas_bar, one.levels, method.sampler.discard)
    except SdloraError as error:
        if one.levels == request.steps:
            raise
        raise SdloraError(
            f"{one.steps} steps with so little denoise are the last of {one.levels} levels: {error}, or more denoise"
        ) from error


def _pass(
    components: Components,
    requests: list[Request],
    one: Pass,
    course: Course,
    device: torch.device,
    original: Tensor | None,
    redrawn: Tensor | None,
    after: Callback,
) -> Tensor:
    """The latents (n, 4, h, w) that one pass ends on, from noise or from `original` with noise."""
    if original is not None:
        original = original.to(device)
        if not one.steps:
            return original
    whole = levels(components, requests[0], one)
    first, fresh = _noise(components, requests, one, whole)
    below = whole.behind(one.skipped)
    sigma = below.sigmas[0].item()
    x = (beginning(requests[0].method, first, sigma) if original is None else first * sigma).to(device)
    guidance = torch.tensor([r.guidance for r in requests], device=device).view(-1, 1, 1, 1)
    told = time_ids([sizes(components, request, one.size) for request in requests], device)
    denoise = denoiser(components.unet, components.prediction, course.now, guidance, told)
    if original is not None:
        x = original + x
        if redrawn is not None:
            begin = course.step
            denoise = keeping(denoise, redrawn.to(device), original, one.steps, lambda: course.step - begin + 1)
    with one_timestep(components.unet), constant(cross_attention(components.unet)):
        end = sample(requests[0].method, denoise, x, below, fresh, after)
    return end if original is None or redrawn is None else torch.where(redrawn.to(device) > 0, end, original)


def _noise(components: Components, requests: list[Request], one: Pass, whole: Schedule) -> tuple[Tensor, Noise]:
    """The noise that a pass starts from, and what its sampler may add on the way; on the CPU. A second pass draws as the first did."""
    source = noise.source_name(requests[0].noise)
    height, width = (side // components.factor for side in one.size)
    shape = (components.unet.config.in_channels, height, width)
    streams = [noise.stream(r.seed, shape, source, r.variation, r.ensd) for r in requests]
    first = noise.drawn(streams)
    if requests[0].method.sampler.brownian:
        return first, noise.between([r.seed for r in requests], shape, whole.sigmas.tolist(), source)
    return first, lambda *_: noise.drawn(streams)


def _upscaled(components: Components, requests: list[Request], latents: Tensor, one: Pass) -> Tensor:
    height, width = (side // components.factor for side in one.size)
    return requests[0].upscaler(components, latents, (height, width), lambda x: _image(decode(components, x)))


def _finished(components: Components, latents: Tensor, request: Request, start: Start | None) -> Image.Image | SdloraError:
    pixels = decode(components, latents)
    if not (torch.isfinite(latents).all() and torch.isfinite(pixels).all()):
        return guard.nan(components, request, "in the VAE")
    image = _image(pixels)
    return image if start is None or start.paste is None else start.paste(image)


def _image(pixels: Tensor) -> Image.Image:
    """(1, 3, H, W) in [−1, 1] -> RGB. Values are rounded, as diffusers does (AUTOMATIC1111 truncates)."""
    levels = ((pixels.float()[0] / 2 + 0.5) * 255).round().to("cpu", torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())
