"""From names to a model with its adapters: devices, precisions, files; and pictures in one call."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdlora import files, hardware, models
from sdlora.adapter import Adapter
from sdlora.generation.generate import Picture, generate
from sdlora.generation.request import Request
from sdlora.models import Components
from sdlora.prompts import library
from sdlora.strength import Strength, strength


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


def load_adapters(components: Components, chosen: Iterable[tuple[Path, Strength]]) -> list[tuple[Adapter, Strength]]:
    return [(files.load(path, components.modules), eta) for path, eta in chosen]


def find_tagged(requests: Iterable[Request], folders: Sequence[str | Path]) -> tuple[list[Request], dict[str, Path]]:
    """The requests, with the files of their prompts' <lora:NAME:…> for the record, and name -> file for all of them."""
    wanted = list(requests)
    names = dict.fromkeys(tag.name for request in wanted for tag in request.tags)
    known = library.listed(folders)
    found = {name: library.find(name, known, folders) for name in names}
    return [replace(r, tagged=tuple((tag.name, str(found[tag.name])) for tag in r.tags)) for r in wanted], found


def load_named(components: Components, found: Mapping[str, Path]) -> dict[str, Adapter]:
    """Name -> adapter, each file read once."""
    loaded = {path: files.load(path, components.modules) for path in dict.fromkeys(found.values())}
    return {name: loaded[path] for name, path in found.items()}


def draw(
    prompts: str | Sequence[str],
    adapters: Mapping[str | Path, float | str | Strength] | None = None,
    seeds: Iterable[int] = (0,),
    base: str | Path = "emoji",
    device: str = "auto",
    precision: str = "fp32",
    apply: str = "stacked",
    folders: Sequence[str | Path] = (),
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

    folders  where the adapters of <lora:NAME:0.8> in a prompt are
    """
    chosen = [(Path(path), strength(eta)) for path, eta in (adapters or {}).items()]
    record = tuple((str(path), eta) for path, eta in chosen)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    numbers = list(seeds)
    requests = [Request(text, seed=seed, adapters=record, **settings) for text in texts for seed in numbers]
    requests, found = find_tagged(requests, folders)
    components = load(base, device, precision, attention=attention, tiling=tiling, compile=compile, offload=offload)
    where, named = hardware.device(device) if offload else None, load_named(components, found)
    return generate(components, requests, load_adapters(components, chosen), apply, named=named, offload=where)
