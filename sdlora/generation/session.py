"""From names to a model with its adapters: devices, precisions, files; and pictures in one call."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sdlora import files, models
from sdlora.adapter import Adapter
from sdlora.errors import SdloraError, nearest
from sdlora.generation.generate import Picture, generate
from sdlora.generation.request import Request
from sdlora.models import Components
from sdlora.prompts import library
from sdlora.strength import Strength, strength

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICES = ("auto", "cpu", "cuda")


def load(base: str | Path = "emoji", device: str = "auto", precision: str = "fp32") -> Components:
    """models.load with the words of the command line. "auto" is CUDA where there is one."""
    if device not in DEVICES and not device.startswith("cuda:"):
        raise SdloraError(f"unknown device {device!r}{nearest(device, DEVICES)}")
    if precision not in PRECISIONS:
        raise SdloraError(f"unknown precision {precision!r}{nearest(precision, PRECISIONS)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SdloraError("PyTorch finds no CUDA device here; use --device cpu, or install a build of PyTorch for this GPU's driver")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return models.load(base, chosen, PRECISIONS[precision])


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
    components = load(base, device, precision)
    return generate(components, requests, load_adapters(components, chosen), apply, named=load_named(components, found))
