"""What is wanted: one Request per picture, and the grammar of `--seed` and `--adapter`."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sdlora import files
from sdlora.errors import SdloraError, nearest
from sdlora.generation import demands
from sdlora.generation.noise import source_name
from sdlora.generation.samplers import OPTIONS, Method, method
from sdlora.generation.sources import Source
from sdlora.generation.upscale import Upscaler, upscaler
from sdlora.prompts import EMPHASES, Part, extract, parts
from sdlora.prompts.tags import Tag, refuse
from sdlora.strength import Strength, parse, strength

MOST_SEEDS = 10_000  # in one --seed: more is taken for a slip of the keyboard
LAST_SEED = 2**63 - 1  # torch's generators take no more


Pair = tuple[int, int]


@dataclass(frozen=True)
class Request:
    """One picture. `generate` draws it; the settings in its PNG are made from it."""

    prompt: str  # in the language of sdlora.prompts
    negative: str = ""
    seed: int = 0
    steps: int = 20  # noise levels; Heun, DPM2, DPM2 a, DPM++ 2S a and DPM++ SDE call the U-Net twice for each, the others once
    guidance: float = 5.0  # s of u + s (c − u); 1 is the plain conditional model, at half the cost
    width: int | None = None  # pixels; None is what the base was trained on
    height: int | None = None
    adapters: tuple[tuple[str, float | Strength], ...] = ()  # (file, strength), for the record: `generate` takes the adapters themselves
    tagged: tuple[tuple[str, str], ...] = ()  # (name, file) of the prompt's <lora:NAME:…>, for the record as well
    clip_skip: int = 1  # which layer of the text encoder is read: 1 is the last, 2 the one before it, …; SDXL always reads 2
    emphasis: str = "Original"  # one of EMPHASES: what (word:1.3) does
    sampler: str = "Euler"  # a key of SAMPLERS, or another program's name for it ("DPM++ 2M Karras", "k_euler_a")
    schedule: str = "automatic"  # or karras, exponential, sgm_uniform, …; automatic is the sampler's own
    noise: str = "cpu"  # "cuda" has the numbers of a GPU's generator, on any device
    eta: float | None = None  # for the samplers that have it, as the four below; None is the sampler's own value
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None
    original: Pair | None = None  # SDXL: (height, width) in pixels of the picture it should look like; None is the picture's own
    crop: Pair = (0, 0)  # SDXL: (top, left) in pixels, what it should look cropped by
    target: Pair | None = None  # SDXL: (height, width); None is the picture's own
    floor: bool = False  # width and height are rounded down to what the VAE can draw, as AUTOMATIC1111 does; else other ones are refused
    variation_seed: int | None = None  # its first noise is mixed into the seed's
    variation_strength: float | None = None  # 0 is the seed's noise alone, 1 the variation seed's
    ensd: int = 0  # "eta noise seed delta": what a sampler draws on the way comes from seed + ensd
    init: Source | None = field(default=None, hash=False)  # img2img: a picture to start from, a file or a PIL picture
    denoise: float | None = None  # which share of the noise levels the init picture goes through, 0 to 1; None is 0.75
    exact_steps: bool = False  # `steps` are drawn; else the share `denoise` of them
    resize: str = "crop"  # of an init picture of another size: crop, fit or stretch
    background: str = "white"  # what is seen where the init picture is transparent
    mask: Source | None = field(default=None, hash=False)  # inpainting: white is redrawn; "alpha": what is transparent in `init`
    mask_blur: float | None = None  # σ in pixels of the mask's file; None is half a latent: 4 for Stable Diffusion, 2 for emoji
    masked_content: str = "original"  # what the masked part starts from: original, fill, noise or nothing
    soft_mask: bool = (
        False  # grey in the blurred mask is redrawn in its share of the last steps; else more than half of white is, and less is not
    )
    only_masked: int | None = None  # the mask's surroundings of so many pixels are drawn at full size by themselves; None: all of it
    hires: float | None = None  # the picture is drawn, enlarged by this factor, and drawn over
    hires_denoise: float | None = None  # of the second pass, as `denoise`; None is 0.7
    hires_steps: int | None = None  # of the second pass, all of them drawn; None is `steps`
    hires_upscaler: str = "Latent"  # a key of UPSCALERS

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= LAST_SEED:
            raise SdloraError(f"seed is {self.seed}; it has to be from 0 to {LAST_SEED}")
        if self.steps < 1:
            raise SdloraError(f"steps is {self.steps}; it has to be at least 1 (20 is usual)")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise SdloraError(f"guidance is {self.guidance}; it has to be a number from 0 on (1 is none, 5 is usual)")
        for name, side in (("width", self.width), ("height", self.height)):
            if side is not None and side < 1:
                raise SdloraError(f"{name} is {side}; it is a number of pixels")
        for name, pair, least in (("original", self.original, 1), ("crop", self.crop, 0), ("target", self.target, 1)):
            if pair is not None and (len(pair) != 2 or min(pair) < least):
                words = "top and left" if name == "crop" else "height and width"
                raise SdloraError(f"{name} is {pair}; it is two numbers of pixels, {words}")
        if self.clip_skip < 1:
            raise SdloraError(f"clip_skip is {self.clip_skip}; it has to be at least 1, which is the text encoder's last layer")
        if self.emphasis not in EMPHASES:
            raise SdloraError(f"unknown emphasis {self.emphasis!r}{nearest(self.emphasis, EMPHASES)}")
        source_name(self.noise)
        demands.check(self)
        self._check_noise()
        method(self.sampler, self.schedule, self._options)
        extract(self.prompt)  # a malformed tag is said here, before anything is loaded
        refuse(self.negative)

    def _check_noise(self) -> None:
        if self.variation_seed is not None and not 0 <= self.variation_seed <= LAST_SEED:
            raise SdloraError(f"variation_seed is {self.variation_seed}; it has to be from 0 to {LAST_SEED}")
        if not 0 <= self.seed + self.ensd <= LAST_SEED:
            raise SdloraError(f"seed {self.seed} with ensd {self.ensd} is {self.seed + self.ensd}; it has to be from 0 to {LAST_SEED}")
        if self.ensd and not self.method.draws:
            raise SdloraError(f"ensd has no effect with the sampler {self.method}, which draws no noise of that kind; leave ensd out")

    @property
    def denoising(self) -> float:
        return 0.75 if self.denoise is None else self.denoise

    @property
    def hires_denoising(self) -> float:
        return 0.7 if self.hires_denoise is None else self.hires_denoise

    @property
    def variation(self) -> tuple[int, float] | None:
        """The variation seed and its strength, where it has any."""
        return (self.variation_seed, self.variation_strength) if self.variation_seed is not None and self.variation_strength else None

    @cached_property
    def upscaler(self) -> Upscaler:
        return upscaler(self.hires_upscaler)

    @cached_property
    def method(self) -> Method:
        """The sampler with all that belongs to it; equal for requests that can be drawn together."""
        return method(self.sampler, self.schedule, self._options)

    @property
    def _options(self) -> dict[str, float | None]:
        return {name: getattr(self, name) for name in OPTIONS}

    @cached_property
    def tags(self) -> tuple[Tag, ...]:
        return extract(self.prompt).tags

    @cached_property
    def parts(self) -> list[Part]:
        """The prompt's conditions, its tags taken out."""
        return parts(extract(self.prompt).text)

    @cached_property
    def guided(self) -> bool:
        """Whether the U-Net has to see the negative prompt: not for a single condition at guidance 1."""
        return self.guidance != 1 or [part.weight for part in self.parts] != [1.0]


def parse_seeds(text: str) -> list[int]:
    """ "1-4" -> 1, 2, 3, 4;  "1,5,9" -> 1, 5, 9;  both mix. Each seed once, in the order given."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        if not _number(first) or (dash and not _number(last)):
            raise SdloraError(f"--seed {text!r}: {part.strip()!r} is no seed; write one as 7, several as 1,5,9 or 1-4")
        span = range(int(first), int(last or first) + 1)
        if not span:
            raise SdloraError(f"--seed {text!r}: {part.strip()!r} runs backwards; write it as {last}-{first}")
        if len(span) > MOST_SEEDS:
            raise SdloraError(f"--seed {text!r}: {len(span):,} seeds; at most {MOST_SEEDS:,} at a time")
        seeds |= dict.fromkeys(span)
    return list(seeds)


def parse_pair(text: str, option: str) -> Pair:
    """ "768x1024" -> 768, 1024: two numbers of pixels."""
    one, _, two = text.partition("x")
    if not (_number(one) and _number(two)):
        raise SdloraError(f"{option} {text!r} is not two numbers of pixels; write it as 1024x1024")
    return int(one), int(two)


def parse_adapter(text: str) -> tuple[Path, Strength]:
    """ "style.safetensors=0.8" -> its path and strength, in the grammar of sdlora/strength.py; without "=…" the strength is 1.

    A folder that PEFT or diffusers saved stands for the adapter's file in it. SdloraError if there is no such file. A file may have
    an = in its name: the longest name that exists is meant.
    """
    cuts = [len(text), *(i for i in range(len(text) - 1, 0, -1) if text[i] == "=")]
    cut = next((i for i in cuts if Path(text[:i]).exists()), None)
    if cut is None:
        name = text.partition("=")[0]
        raise SdloraError(f"--adapter {text!r}: there is no file {name!r}; check the path")
    try:
        return files.located(text[:cut]), parse(text[cut + 1 :]) if cut < len(text) else strength(1)
    except SdloraError as error:
        raise SdloraError(f"--adapter {text!r}: {error}") from error


def _number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 19
