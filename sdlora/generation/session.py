"""From names to a model with its adapters: devices, precisions, files; and pictures in one call."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdlora import hardware, models
from sdlora.adapter import Adapter
from sdlora.files import Library
from sdlora.generation.adapters import AUTO
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
    compile  torch.compile for the U-Net; SdloraError on the CPU, where that is slower
    offload  everything stays in the CPU's memory; `generate(…, offload=device)` brings each part in for its turn
    found    further arguments of models.load (vae, prediction, …)
    """
    where, dtype = hardware.device(device), hardware.dtype(precision)
    if compile:
        hardware.check_compiling(where)
    components = models.load(base, "cpu" if offload else where, dtype, **found)
    hardware.set_attention(components.unet, attention)
    hardware.set_tiling(components.vae, tiling)
    if compile:
        hardware.compile_calls(components.unet)
    return components


def load_adapters(
    components: Components, chosen: Iterable[tuple[Path, Strength]], library: Library | None = None
) -> list[tuple[Adapter, Strength]]:
    """From disk, or from `library` where it has them."""
    shelf = Library() if library is None else library
    return [(shelf.load(path, components.modules), eta) for path, eta in chosen]


def find_tagged(requests: Iterable[Request], folders: Sequence[str | Path]) -> tuple[list[Request], dict[str, Path]]:
    """The requests, with the files of their prompts' <lora:NAME:…> for the record, and name -> file for all of them."""
    wanted = list(requests)
    names = dict.fromkeys(tag.name for request in wanted for tag in request.tags)
    known = library.listed(folders)
    found = {name: library.find(name, known, folders) for name in names}
    return [replace(r, tagged=tuple((tag.name, str(found[tag.name])) for tag in r.tags)) for r in wanted], found


class Shelved(Mapping[str, Adapter]):
    """Adapters by name, in the hands of a library: one that its budget drops is read again when a batch needs it."""

    def __init__(self, components: Components, found: Mapping[str, Path], library: Library):
        """Reads each file once, so that what is wrong with one is said at the beginning."""
        self.components, self.found, self.library = components, dict(found), library
        for path in dict.fromkeys(found.values()):
            library.load(path, components.modules)

    def __getitem__(self, name: str) -> Adapter:
        return self.library.load(self.found[name], self.components.modules)

    def __contains__(self, name: object) -> bool:
        return name in self.found

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    @contextmanager
    def lent(self, names: Sequence[str]) -> Iterator[dict[str, Adapter]]:
        """Those called `names`, in memory inside the block; two names of one file are one adapter."""
        with self.library.using([self.found[name] for name in names], self.components.modules) as adapters:
            yield dict(zip(names, adapters, strict=True))


def load_named(components: Components, found: Mapping[str, Path], library: Library | None = None) -> Mapping[str, Adapter]:
    """Name -> adapter, for `generate`: in memory as far as the budget of `library` goes, by default all."""
    return Shelved(components, found, Library() if library is None else library)


def own(chosen: Iterable[tuple[Path, Strength]]) -> dict[str, Path]:
    """Request.adapters' words for their files -> the files."""
    return {str(path): path for path, _ in chosen}


def draw(
    prompts: str | Sequence[str],
    adapters: Mapping[str | Path, float | str | Strength] | None = None,
    seeds: Iterable[int] = (0,),
    base: str | Path = "emoji",
    device: str = "auto",
    precision: str = "fp32",
    apply: str = AUTO,
    folders: Sequence[str | Path] = (),
    *,
    library: Library | None = None,
    attention: str = "auto",
    tiling: bool = False,
    compile: bool = False,
    offload: bool = False,
    pack: bool = True,
    **settings: Any,
) -> Iterator[Picture]:
    """Every prompt with every seed, prompts outermost. `settings` are further fields of Request (steps, guidance, …).

    for picture in draw("a robot, flat emoji", {"style.safetensors": 0.8}, seeds=range(1, 5)):
        picture.image.show()

    folders  where the adapters of <lora:NAME:0.8> in a prompt are
    library  keeps loaded adapters for the next call, within its budget
    """
    chosen = [(Path(path), strength(eta)) for path, eta in (adapters or {}).items()]
    record = tuple((str(path), eta) for path, eta in chosen)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    numbers = list(seeds)
    requests = [Request(text, seed=seed, adapters=record, **settings) for text in texts for seed in numbers]
    requests, found = find_tagged(requests, folders)
    components = load(base, device, precision, attention=attention, tiling=tiling, compile=compile, offload=offload)
    where, named = hardware.device(device) if offload else None, load_named(components, own(chosen) | found, library)
    return generate(components, requests, apply=apply, named=named, offload=where, pack=pack)
