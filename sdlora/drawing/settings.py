"""What a drawing can be told: one table for the command line, settings files, prompt files, grids, old pictures and Python.

The standard library alone, since `sdlora --help` prints it. `reading` checks what comes from files, `translate` makes requests of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

PICTURE, MODEL, RUN = "picture", "model", "run"  # whether a setting belongs to one picture, to what is loaded, or to the run as a whole


def _of(scope: str, default: Any, help: str, metavar: str | None = None, flag: str | None = None) -> Any:
    """A field of Drawing; `flag` is its option where that is not its name, and "" where it has none."""
    return field(default=default, metadata={"scope": scope, "help": help, "metavar": metavar, "flag": flag})


@dataclass(frozen=True)
class Drawing:
    """Every prompt with every seed, and how. Unset is what the help says; a field of Request with the same name goes there as it is."""

    prompt: tuple[str, ...] = _of(PICTURE, (), "One or several prompts, each in quotes.", "PROMPT", flag="")
    adapter: tuple[str, ...] = _of(
        PICTURE, (), "An adapter: 0.8, unet=0.8:te=0.5:mid=0, 0.8@0-0.4,0.2@0.4-1; may be repeated; none: without.", "FILE=STRENGTH"
    )
    adapters: tuple[Path, ...] = _of(RUN, (), "Where <lora:NAME:STRENGTH> in a prompt is looked for; may be repeated.", "FOLDER")
    seed: int | str = _of(PICTURE, "1", "Seeds: 7, or 1-4, or 1,5,9. Every prompt is drawn with each.")
    sampler: str = _of(PICTURE, "Euler", "Euler, Euler a, DPM++ 2M, UniPC, …; other programs' names are understood.")
    schedule: str = _of(PICTURE, "automatic", "uniform, karras, exponential, sgm_uniform, simple, beta, …; or the sampler's.")
    steps: int = _of(PICTURE, 20, "Steps of the sampler.")
    guidance: float = _of(PICTURE, 5.0, "Classifier-free guidance; 1 is none and takes half the time.")
    negative: str = _of(PICTURE, "", "What the pictures should not show.")
    output: Path = _of(RUN, Path("pictures"), "Folder for the pictures; earlier ones are kept.")
    apply: str = _of(MODEL, "auto", "How adapters go onto the model: stacked (on the fly), fused, or auto: the quicker.")
    adapter_memory: str | None = _of(RUN, None, "Keep loaded adapters up to this size, such as 2GB; by default all.", "SIZE")
    base: str = _of(MODEL, "emoji", "Base model: emoji, or Stable Diffusion as a file, a diffusers folder or a cached Hub id.")
    width: int | None = _of(PICTURE, None, "Pixels; by default what the base was trained on.")
    height: int | None = _of(PICTURE, None, "Pixels; by default what the base was trained on.")
    batch: int | None = _of(RUN, None, "Pictures drawn together at the most; changes the speed alone.")
    eta: float | None = _of(PICTURE, None, "How much noise ancestral samplers, SDE samplers and DDIM add.")
    s_churn: float | None = _of(PICTURE, None, "Noise before each step of Euler, Heun and DPM2.")
    s_tmin: float | None = _of(PICTURE, None, "Lowest noise level of --s-churn.")
    s_tmax: float | None = _of(PICTURE, None, "Highest noise level of --s-churn.")
    s_noise: float | None = _of(PICTURE, None, "Scale of the noise that a sampler adds.")
    noise: str = _of(PICTURE, "cpu", "cpu; or cuda: the numbers a GPU would draw, for AUTOMATIC1111's seeds.")
    clip_skip: int = _of(PICTURE, 1, "The text encoder's layer to read: 1 is the last, 2 the one before it.")
    emphasis: str = _of(PICTURE, "Original", 'What (word:1.3) does: Original, "No norm", Ignore or None (brackets are text).')
    device: str = _of(MODEL, "auto", "auto, cuda, mps or cpu.")
    precision: str = _of(MODEL, "fp32", "Of the model: fp32, bf16 or fp16.")
    attention: str = _of(MODEL, "auto", "auto, sdpa or xformers.")
    offload: bool = _of(MODEL, False, "For small GPUs: bring each network in for its turn alone.")
    tiling: bool = _of(MODEL, False, "For large pictures: decode them in overlapping tiles.")
    pack: bool = _of(MODEL, True, "On a CPU: copy weights into its kernels' order, where memory is ample.")
    compile: bool = _of(MODEL, False, "torch.compile, on a GPU; pays from many pictures on.")
    vae: Path | None = _of(MODEL, None, "Another VAE than the base's own: a folder or a file.")
    family: str | None = _of(MODEL, None, "sd1, sd2 or sdxl; by default found from the base.")
    prediction: str | None = _of(MODEL, None, "epsilon or v_prediction; by default found from the base.")
    variant: str | None = _of(MODEL, None, "Which files of a folder: fp16, for example.")
    original: str | None = _of(PICTURE, None, "SDXL: HEIGHTxWIDTH of the picture it should look like; by default its own.")
    crop: str = _of(PICTURE, "0x0", "SDXL: TOPxLEFT, what it should look cropped by.")
    target: str | None = _of(PICTURE, None, "SDXL: HEIGHTxWIDTH that it should look made for; by default its own.")
    floor: bool = _of(PICTURE, False, "Round width and height down to what can be drawn, as AUTOMATIC1111 does.")
    variation_seed: int | None = _of(PICTURE, None, "Another seed, whose noise is mixed into that of --seed.")
    variation_strength: float | None = _of(PICTURE, None, "How much of it: 0 is --seed alone, 1 the other.")
    ensd: int = _of(PICTURE, 0, "AUTOMATIC1111's eta noise seed delta, for samplers that draw noise on the way.")
    init: Path | None = _of(PICTURE, None, "img2img: a picture to start from.", "IMAGE")
    denoise: float | None = _of(PICTURE, None, "How far --init is drawn anew: 0 not at all, 1 from noise; by default 0.75.")
    exact_steps: bool = _of(PICTURE, False, "Draw all --steps below --denoise, and not its share of them.")
    resize: str = _of(PICTURE, "crop", "An --init of another shape: crop, fit (its edges are repeated) or stretch.")
    background: str = _of(PICTURE, "white", "A colour for what is transparent in --init.")
    mask: str | None = _of(PICTURE, None, "Redraw what is white in it alone; alpha: what is transparent in --init.", "IMAGE")
    mask_blur: float | None = _of(PICTURE, None, "Of the mask's edge, in pixels; by default 4 for Stable Diffusion, 2 for emoji.")
    masked_content: str = _of(
        PICTURE, "original", "What the masked part starts from: original, fill (the colours around it), noise or nothing."
    )
    soft_mask: bool = _of(PICTURE, False, "Redraw what is grey in the blurred mask in the last steps alone: half of them for half grey.")
    only_masked: int | None = _of(PICTURE, None, "Draw the mask's surroundings, so many pixels of them, at full size.", "PIXELS")
    hires: float | None = _of(PICTURE, None, "Draw, enlarge by this factor, and draw over.", "FACTOR")
    hires_denoise: float | None = _of(PICTURE, None, "How far the enlarged picture is drawn anew; by default 0.7.")
    hires_steps: int | None = _of(PICTURE, None, "Steps of the second pass; by default --steps.")
    hires_upscaler: str = _of(PICTURE, "Latent", "Latent, latent-nearest, latent-bicubic, …; of pixels: lanczos, nearest.")
    image_format: str = _of(RUN, "png", "png, jpeg or webp; all carry the settings.")
    quality: int | None = _of(RUN, None, "Of jpeg and webp, 1 to 100; 95 by default.")
    preview: int | None = _of(RUN, None, "Write preview.png into the output folder every so many steps.", "STEPS")
    prompts: Path | None = _of(
        RUN, None, "Draw the prompts of a file: one a line, or JSON lines with further settings; goes on where it stopped.", "FILE"
    )
    named: tuple[tuple[str, Path], ...] = _of(RUN, (), "The files of <lora:NAME:…> that are known already.", flag="")


NONE = "none"  # takes a setting back that an old picture or a settings file has; of adapter: without any
OPTIONAL = frozenset(f.name for f in fields(Drawing) if f.default is None)  # it is said of these, and of adapter
SCOPES: Mapping[str, str] = {f.name: f.metadata["scope"] for f in fields(Drawing)}
OPTIONS = tuple(f for f in fields(Drawing) if f.metadata["flag"] != "")  # those with an option of their own on the command line


def scope(*wanted: str) -> tuple[str, ...]:
    """The names of the settings of these scopes."""
    return tuple(name for name, where in SCOPES.items() if where in wanted)
