"""From names to a model with its adapters: devices, precisions, files; and pictures in one call."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdlora import files, hardware, models
from sdlora.adapter import Adapter
from sdlora.generation.generate import Picture, generate
from sdlora.generation.request import Request
from sdlora.models import Components


def load(
    base: str | Path = "emoji",
    device: str = "auto",
    precision: str = "fp32",
    *,
    attention: str = "auto",
    tiling: bool = False,
    compile: bool = False,
    offload: bool = False,
    **found: Any,
) -> Components:
    """models.load with the words of the command line (`hardware` has them), and what docs/memory.md tells of.

    tiling   the VAE decodes large pictures in overlapping tiles
    compile  torch.compile for the U-Net; adapters then have to be fused
    offload  everything stays in the CPU's memory; `generate(…, offload=device)` brings each part in for its turn
    found    further arguments of models.load (vae, prediction, …)
    """
    where, dtype = hardware.device(device), hardware.dtype(precision)
    components = models.load(base, "cpu" if offload else where, dtype, **found)
    hardware.set_attention(components.unet, attention)
    hardware.set_tiling(components.vae, tiling)
    if compile:
        hardware.compile_calls(components.unet)
    return components


def load_adapters(components: Components, chosen: Iterable[tuple[Path, float]]) -> list[tuple[Adapter, float]]:
    return [(files.load(path, components.modules), eta) for path, eta in chosen]


def tokens_cut(components: Components, prompt: str) -> int:
    """How many tokens of `prompt` do not fit into a text encoder's 77, its start and end token among them."""
    return max(0, *(len(tokenizer(prompt).input_ids) - tokenizer.model_max_length for tokenizer in components.tokenizers))


def draw(
    prompts: str | Sequence[str],
    adapters: Mapping[str | Path, float] | None = None,
    seeds: Iterable[int] = (0,),
    base: str | Path = "emoji",
    device: str = "auto",
    precision: str = "fp32",
    apply: str = "stacked",
    *,
    attention: str = "auto",
    tiling: bool = False,
    compile: bool = False,
    offload: bool = False,
    **settings: Any,
) -> Iterator[Picture]:
    """Every prompt with every seed, prompts outermost. `settings` are further fields of Request (steps, guidance, …).

    for picture in draw("a robot, flat emoji", {"style.safetensors": 0.8}, seeds=range(1, 5)):
        picture.image.show()
    """
    chosen = [(Path(path), float(eta)) for path, eta in (adapters or {}).items()]
    record = tuple((str(path), eta) for path, eta in chosen)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    numbers = list(seeds)
    requests = [Request(text, seed=seed, adapters=record, **settings) for text in texts for seed in numbers]
    components = load(base, device, precision, attention=attention, tiling=tiling, compile=compile, offload=offload)
    where = hardware.device(device) if offload else None
    return generate(components, requests, load_adapters(components, chosen), apply, offload=where)
