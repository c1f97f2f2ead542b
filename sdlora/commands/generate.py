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
    adapter: Annotated[list[str] | None, typer.Option(metavar="FILE=ETA", help="An adapter and its strength; may be repeated.")] = None,
    seed: Annotated[str, typer.Option(help="Seeds: 7, or 1-4, or 1,5,9. Every prompt is drawn with each.")] = "1",
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none and takes half the time.")] = 5.0,
    negative: Annotated[str, typer.Option(help="What the pictures should not show.")] = "",
    output: Annotated[Path, typer.Option(help="Folder for the pictures; earlier ones are kept.")] = Path("pictures"),
    apply: Annotated[str, typer.Option(help="How adapters go onto the model: stacked (on the fly) or fused.")] = "stacked",
    base: Annotated[
        str,
        typer.Option(help="Base model: emoji, or Stable Diffusion as a file, a diffusers folder or a cached Hub id."),
    ] = "emoji",
    width: Annotated[int | None, typer.Option(help="Pixels; by default what the base was trained on.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; by default what the base was trained on.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures drawn together at the most; changes the speed alone.")] = None,
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
) -> None:
    """Draw every PROMPT with every seed: PNGs that carry their settings, and a contact sheet.

    Example: sdlora generate "a cat, flat emoji" --adapter style.safetensors=0.8 --seed 1-4 --output pictures
    """
    from sdlora import atomic, generation, hardware

    chosen = [generation.parse_adapter(text) for text in adapter or ()]
    record = tuple((str(path), eta) for path, eta in chosen)
    numbers = generation.parse_seeds(seed)
    pairs = [None if text is None else generation.parse_pair(text, name) for name, text in (("--original", original), ("--target", target))]
    sizes = (pairs[0], generation.parse_pair(crop, "--crop"), pairs[1])
    requests = [generation.Request(text, negative, n, steps, guidance, width, height, record, *sizes) for text in prompts for n in numbers]
    where = hardware.device(device) if offload else None
    folder = atomic.writable_folder(output)
    found: dict[str, Any] = {"vae": vae, "family": family, "prediction": prediction, "variant": variant}
    if base != "emoji":
        found["say"] = lambda text: typer.echo(text, err=True)
    components = generation.load(base, device, precision, attention=attention, tiling=tiling, compile=compile, offload=offload, **found)
    for text in [*prompts, negative]:
        if cut := generation.tokens_cut(components, text):
            typer.echo(f"warning: the last {cut} tokens of {text!r} are left out: the text encoder reads 77", err=True)
    weighted = generation.load_adapters(components, chosen)
    _draw(components, requests, folder, apply, {"weighted": weighted, "batch": batch, "offload": where})


def _draw(components: Any, requests: "list[Request]", folder: Path, apply: str, ways: dict[str, Any]) -> None:
    """Draw, save each picture as soon as it is there, and say where."""
    from time import perf_counter

    from sdlora.generation import generate, record

    start, saved = perf_counter(), []
    with _progress(sum(request.steps for request in requests)) as advance:
        for picture in generate(components, requests, apply=apply, callback=lambda state: advance(len(state.x)), **ways):
            saved.append((record.save(picture, folder, record.settings(components, picture.request, apply)), picture))
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
