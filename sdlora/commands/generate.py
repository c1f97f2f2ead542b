"""sdlora generate: pictures from prompts, with any number of adapters."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sdlora.generation import Request


def register(app: typer.Typer) -> None:
    app.command()(generate)


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="One or several prompts, each in quotes.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE=STRENGTH", help="An adapter: 0.8, unet=0.8:te=0.5:mid=0, 0.8@0-0.4,0.2@0.4-1; may be repeated."),
    ] = None,
    adapters: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="Where <lora:NAME:STRENGTH> in a prompt is looked for; may be repeated.")
    ] = None,
    seed: Annotated[str, typer.Option(help="Seeds: 7, or 1-4, or 1,5,9. Every prompt is drawn with each.")] = "1",
    sampler: Annotated[str, typer.Option(help="Euler, Euler a, DPM++ 2M, UniPC, …; other programs' names are understood.")] = "Euler",
    schedule: Annotated[
        str, typer.Option(help="uniform, karras, exponential, sgm_uniform, simple, beta, …; or the sampler's.")
    ] = "automatic",
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none and takes half the time.")] = 5.0,
    negative: Annotated[str, typer.Option(help="What the pictures should not show.")] = "",
    output: Annotated[Path, typer.Option(help="Folder for the pictures; earlier ones are kept.")] = Path("pictures"),
    apply: Annotated[str, typer.Option(help="How adapters go onto the model: stacked (on the fly), fused, or auto: the quicker.")] = "auto",
    adapter_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Keep loaded adapters up to this size, such as 2GB; by default all.")
    ] = None,
    base: Annotated[
        str,
        typer.Option(help="Base model: emoji, or Stable Diffusion as a file, a diffusers folder or a cached Hub id."),
    ] = "emoji",
    width: Annotated[int | None, typer.Option(help="Pixels; by default what the base was trained on.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; by default what the base was trained on.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures drawn together at the most; changes the speed alone.")] = None,
    eta: Annotated[float | None, typer.Option(help="How much noise ancestral samplers, SDE samplers and DDIM add.")] = None,
    s_churn: Annotated[float | None, typer.Option(help="Noise before each step of Euler, Heun and DPM2.")] = None,
    s_tmin: Annotated[float | None, typer.Option(help="Lowest noise level of --s-churn.")] = None,
    s_tmax: Annotated[float | None, typer.Option(help="Highest noise level of --s-churn.")] = None,
    s_noise: Annotated[float | None, typer.Option(help="Scale of the noise that a sampler adds.")] = None,
    noise: Annotated[str, typer.Option(help="cpu; or cuda: the numbers a GPU would draw, for AUTOMATIC1111's seeds.")] = "cpu",
    clip_skip: Annotated[int, typer.Option(help="The text encoder's layer to read: 1 is the last, 2 the one before it.")] = 1,
    emphasis: Annotated[
        str, typer.Option(help='What (word:1.3) does: Original, "No norm", Ignore or None (brackets are text).')
    ] = "Original",
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of the model: fp32, bf16 or fp16.")] = "fp32",
    attention: Annotated[str, typer.Option(help="auto, sdpa or xformers.")] = "auto",
    offload: Annotated[bool, typer.Option("--offload", help="For small GPUs: bring each network in for its turn alone.")] = False,
    tiling: Annotated[bool, typer.Option("--tiling", help="For large pictures: decode them in overlapping tiles.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile; pays from many pictures on; needs --apply fused.")] = False,
    vae: Annotated[Path | None, typer.Option(help="Another VAE than the base's own: a folder or a file.")] = None,
    family: Annotated[str | None, typer.Option(help="sd1, sd2 or sdxl; by default found from the base.")] = None,
    prediction: Annotated[str | None, typer.Option(help="epsilon or v_prediction; by default found from the base.")] = None,
    variant: Annotated[str | None, typer.Option(help="Which files of a folder: fp16, for example.")] = None,
    original: Annotated[str | None, typer.Option(help="SDXL: HEIGHTxWIDTH of the picture it should look like; by default its own.")] = None,
    crop: Annotated[str, typer.Option(help="SDXL: TOPxLEFT, what it should look cropped by.")] = "0x0",
    target: Annotated[str | None, typer.Option(help="SDXL: HEIGHTxWIDTH that it should look made for; by default its own.")] = None,
    floor: Annotated[
        bool, typer.Option("--floor", help="Round width and height down to what can be drawn, as AUTOMATIC1111 does.")
    ] = False,
    init: Annotated[Path | None, typer.Option(metavar="IMAGE", help="img2img: a picture to start from.")] = None,
    denoise: Annotated[float | None, typer.Option(help="How far --init is drawn anew: 0 not at all, 1 from noise; 0.75.")] = None,
    exact_steps: Annotated[bool, typer.Option("--exact-steps", help="Draw all --steps below --denoise, not its share of them.")] = False,
    resize: Annotated[str, typer.Option(help="An --init of another shape: crop, fit (its edges repeated) or stretch.")] = "crop",
    background: Annotated[str, typer.Option(help="A colour for what is transparent in --init.")] = "white",
    mask: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Redraw what is white in it alone; alpha: where --init is clear.")
    ] = None,
    mask_blur: Annotated[float | None, typer.Option(help="Of the mask's edge, pixels; 4 for Stable Diffusion, 2 for emoji.")] = None,
    masked_content: Annotated[str, typer.Option(help="What the masked part starts from: original, noise or nothing.")] = "original",
    only_masked: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Draw the mask's surroundings, so many pixels of them, at full size.")
    ] = None,
    hires: Annotated[float | None, typer.Option(metavar="FACTOR", help="Draw, enlarge by FACTOR, and draw over.")] = None,
    hires_denoise: Annotated[float | None, typer.Option(help="How far the enlarged picture is drawn anew; 0.7.")] = None,
    hires_steps: Annotated[int | None, typer.Option(help="Steps of the second pass; by default --steps.")] = None,
    hires_upscaler: Annotated[str, typer.Option(help="latent, latent-nearest, latent-bicubic, …; of pixels: lanczos, nearest.")] = "Latent",
    variation_seed: Annotated[str | None, typer.Option(help="Seeds whose noise is mixed into that of --seed: 7, 1-4, 1,5,9.")] = None,
    variation_strength: Annotated[float | None, typer.Option(help="How much of it: 0 is --seed alone, 1 the other.")] = None,
    ensd: Annotated[int, typer.Option(help="AUTOMATIC1111's eta noise seed delta, for samplers that draw noise on the way.")] = 0,
) -> None:
    """Draw every PROMPT with every seed: PNGs that carry their settings, and a contact sheet.

    Example: sdlora generate "a cat, flat emoji" --adapter style.safetensors=0.8 --seed 1-4 --output pictures
    """
    from sdlora import atomic, generation, hardware
    from sdlora.files import Library, parse_bytes
    from sdlora.prompts import extract

    library = Library(None if adapter_memory is None else parse_bytes(adapter_memory, "--adapter-memory"))
    chosen = [generation.parse_adapter(text) for text in adapter or ()]
    record = tuple((str(path), eta) for path, eta in chosen)
    numbers = generation.parse_seeds(seed)
    pairs = [None if text is None else generation.parse_pair(text, name) for name, text in (("--original", original), ("--target", target))]
    sizes = {"original": pairs[0], "crop": generation.parse_pair(crop, "--crop"), "target": pairs[1]}
    way = dict(sampler=sampler, schedule=schedule, noise=noise, eta=eta, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
    started = dict(init=init, denoise=denoise, exact_steps=exact_steps, resize=resize, background=background)
    masked = dict(mask=mask, mask_blur=mask_blur, masked_content=masked_content, only_masked=only_masked)
    second = dict(hires=hires, hires_denoise=hires_denoise, hires_steps=hires_steps, hires_upscaler=hires_upscaler)
    drawn: dict[str, Any] = {**started, **masked, **second, "floor": floor, "variation_strength": variation_strength, "ensd": ensd}
    further: dict[str, Any] = {"clip_skip": clip_skip, "emphasis": emphasis, **way, **sizes, **drawn}
    others = [None] if variation_seed is None else generation.parse_seeds(variation_seed, "--variation-seed")
    requests = [
        generation.Request(t, negative, n, steps, guidance, width, height, record, variation_seed=other, **further)
        for t in prompts
        for n in numbers
        for other in others
    ]
    for prompt in prompts:
        for tag in extract(prompt).ignored:
            typer.echo(f"warning: {tag} is left out of the prompt; sdlora knows <lora:NAME:STRENGTH>", err=True)
    requests, tagged = generation.find_tagged(requests, adapters or ())
    where = hardware.device(device) if offload else None
    folder = atomic.writable_folder(output)
    found: dict[str, Any] = {"vae": vae, "family": family, "prediction": prediction, "variant": variant}
    if base != "emoji":
        found["say"] = lambda text: typer.echo(text, err=True)
    components = generation.load(base, device, precision, attention=attention, tiling=tiling, compile=compile, offload=offload, **found)
    named = generation.load_named(components, generation.own(chosen) | tagged, library)
    _draw(components, requests, folder, {"apply": apply, "batch": batch, "named": named, "offload": where})


def _draw(components: Any, requests: "list[Request]", folder: Path, ways: dict[str, Any]) -> None:
    """Draw, save each picture as soon as it is there, and say where."""
    from time import perf_counter

    from sdlora.generation import generate, record, steps

    start, saved = perf_counter(), []
    with _progress(sum(steps(components, request) for request in requests)) as advance:
        ways |= {"callback": lambda state: advance(len(state.x)), "say": lambda line: typer.echo(line, err=True)}
        for picture in generate(components, requests, **ways):
            saved.append((record.save(picture, folder, record.settings(components, picture.request, picture.apply)), picture))
    seconds = perf_counter() - start
    for path, _ in saved if len(saved) <= 8 else (saved[0], saved[-1]):
        typer.echo(path)
    if len(saved) > 1:
        typer.echo(record.save_sheet(saved, folder))
    typer.echo(f"{len(saved)} picture{'s' * (len(saved) > 1)} in {seconds:.1f} s, {seconds / len(saved):.2f} s each")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar over all steps of all pictures; yields what moves it on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f} steps/s" if task.speed else "… steps/s")

    done = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    with Progress(*done, Speed(), TimeRemainingColumn(), TextColumn("left"), console=Console(stderr=True)) as bar:
        task = bar.add_task("drawing", total=total)
        yield lambda images: bar.advance(task, images)
