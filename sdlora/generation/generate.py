"""Requests in, pictures out: text → noise → Euler steps → VAE, any number of pictures at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby

import torch
from PIL import Image
from torch import Tensor

from sdlora import conditioning, hardware
from sdlora.adapter import Adapter
from sdlora.apply import WAYS, applied
from sdlora.conditioning import Conditioning, Sizes
from sdlora.errors import SdloraError, nearest
from sdlora.families import FAMILIES
from sdlora.generation import noise
from sdlora.generation.denoiser import denoiser, one_timestep
from sdlora.generation.request import Request
from sdlora.generation.sampler import State, euler, uniform
from sdlora.latents import decode
from sdlora.models import Components

POSITIONS = 1024  # latent positions in a batch by default: 4 pictures of 64 px with f = 4, where the gain ends on a CPU

Callback = Callable[[State], None]
Texts = dict[tuple[str, bool], Conditioning]  # by prompt and whether it is a positive one


@dataclass(frozen=True, eq=False)
class Picture:
    request: Request
    image: Image.Image  # RGB


def generate(
    components: Components,
    requests: Iterable[Request],
    weighted: Sequence[tuple[Adapter, float]] = (),
    apply: str = "stacked",
    batch: int | None = None,
    callback: Callback | None = None,
    offload: torch.device | None = None,
) -> Iterator[Picture]:
    """The pictures, in the order of their requests, each as soon as its batch is done.

    weighted  adapters with their strengths. They are on the model only while a batch is drawn, never while the caller has
              control; strength 0 is the base itself, bit for bit.
    batch     pictures drawn together at the most; by default as many as keep a CPU busy. A picture does not depend on it: on the
              CPU bit for bit, but for stacked adapters of rank 1 altogether (rounding, 1e-6 of the latents' scale).
    callback  is called after every step of every batch.
    offload   a device with little memory: text encoders, U-Net and VAE come there in turn and go back to where they were.

    SdloraError (before anything is drawn) for a size that the model cannot draw, and when a picture turns into NaN.
    """
    if apply not in WAYS:
        raise SdloraError(f"unknown way to apply an adapter: {apply!r}{nearest(apply, WAYS)}")
    if batch is not None and batch < 1:
        raise SdloraError(f"batch is {batch}; it has to be at least 1")
    wanted = list(requests)
    if not FAMILIES[components.family].pooled and any(r.original or r.target or r.crop != (0, 0) for r in wanted):
        raise SdloraError(f"original, crop and target size act on SDXL alone, and {components.name} is none; leave them out")
    groups = list(_batches(components, wanted, batch))
    active = [(adapter, eta) for adapter, eta in weighted if eta != 0]
    if active and apply != "fused" and hardware.is_compiled(components.unet):
        raise SdloraError("a compiled U-Net does not see adapters that come and go; take apply fused, or leave compile out")
    return _pictures(components, groups, lambda: applied(components.modules, active, apply), callback, offload)


def size(components: Components, request: Request) -> tuple[int, int]:
    """(height, width) in pixels; SdloraError unless every level of the U-Net halves it evenly."""
    multiple = components.factor * 2 ** (len(components.unet.config.block_out_channels) - 1)
    height, width = request.height or components.size, request.width or components.size
    for name, side in (("height", height), ("width", width)):
        if side % multiple:
            near = max(multiple, round(side / multiple) * multiple)
            raise SdloraError(f"{name} {side} does not fit {components.name}: it has to be a multiple of {multiple}, {near} for example")
    return height, width


def sizes(components: Components, request: Request) -> Sizes:
    """What SDXL is told of the picture: unless the request says otherwise, that it was always of this size and is whole."""
    side = size(components, request)
    return Sizes(request.original or side, request.crop, request.target or side)


def _pictures(
    components: Components,
    groups: list[list[Request]],
    adapters: Callable[[], AbstractContextManager],
    callback: Callback | None,
    offload: torch.device | None,
) -> Iterator[Picture]:
    texts: Texts = {}
    for group in groups:
        with adapters():
            images = _draw(components, group, texts, callback, offload)
        yield from (Picture(request, image) for request, image in zip(group, images, strict=True))


def _batches(components: Components, requests: Iterable[Request], batch: int | None) -> Iterator[list[Request]]:
    """Neighbours that can share the calls of the U-Net: same size and steps, all with guidance or all without."""
    for (height, width, *_), run in groupby(requests, lambda r: (*size(components, r), r.steps, r.guidance == 1)):
        many = batch or max(1, POSITIONS * components.factor**2 // (height * width))
        alike = list(run)
        yield from (alike[i : i + many] for i in range(0, len(alike), many))


@torch.inference_mode()
def _draw(
    components: Components, requests: list[Request], texts: Texts, callback: Callback | None, offload: torch.device | None
) -> list[Image.Image]:
    """One batch. `texts` remembers what is encoded already."""
    device = offload or components.device
    with hardware.resident(components.text_encoders, offload):
        hint, guidance = _condition(components, requests, texts, device)
    denoise = denoiser(components.unet, components.prediction, hint, guidance, _time_ids(components, requests).to(device))
    schedule = uniform(components.alphas_bar, requests[0].steps)
    height, width = (side // components.factor for side in size(components, requests[0]))
    start = noise.initial([r.seed for r in requests], (components.unet.config.in_channels, height, width))
    with hardware.resident([components.unet], offload), one_timestep(components.unet):
        latents = euler(denoise, start.to(device) * schedule.sigmas[0].item(), schedule, callback)
    with hardware.resident([components.vae], offload):
        return [_decode(components, latents[i : i + 1], request) for i, request in enumerate(requests)]


def _condition(components: Components, requests: list[Request], texts: Texts, device: torch.device) -> tuple[Conditioning, Tensor | None]:
    """What the denoiser is told: the embedded prompts (then the negative ones), and the guidance of each picture."""
    guided = requests[0].guidance != 1
    prompts = [(r.prompt, True) for r in requests] + [(r.negative, False) for r in requests if guided]
    for prompt in prompts:  # one by one: an embedding must not depend on its neighbours
        if prompt not in texts:
            texts[prompt] = _embedded(components, *prompt).to(device, components.dtype)
    hint = conditioning.cat(texts[prompt] for prompt in prompts)
    scales = torch.tensor([r.guidance for r in requests], device=hint.context.device).view(-1, 1, 1, 1)
    return hint, scales if guided else None


def _embedded(components: Components, prompt: str, positive: bool) -> Conditioning:
    """An empty negative prompt is the absence of one: for SDXL zeros, as it was trained, and as diffusers takes None."""
    if not positive and prompt == "":
        return conditioning.encode_absent(components)
    return conditioning.encode_text(components, [prompt])


def _time_ids(components: Components, requests: list[Request]) -> Tensor:
    """(n, 6), the sizes that SDXL is told."""
    return conditioning.time_ids([sizes(components, request) for request in requests])


def _decode(components: Components, latents: Tensor, request: Request) -> Image.Image:
    """(1, 4, h, w) -> an RGB picture. Values are rounded, as diffusers does (AUTOMATIC1111 truncates)."""
    pixels = decode(components, latents).float()
    if not (torch.isfinite(latents).all() and torch.isfinite(pixels).all()):
        remedy = "bf16 or fp32" if components.dtype == torch.float16 else "weaker adapters or less guidance"
        raise SdloraError(f"the picture of {request.prompt!r} with seed {request.seed} turned into NaN; try {remedy}")
    levels = ((pixels[0] / 2 + 0.5) * 255).round().to("cpu", torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())
