"""From names to a model with its adapters: devices, precisions, files; and pictures in one call."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sdlora import files, models
from sdlora.adapter import Adapter
from sdlora.errors import SdloraError, nearest
from sdlora.generation.generate import Picture, generate
from sdlora.generation.request import Request
from sdlora.models import Components

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
    components = load(base, device, precision)
    return generate(components, requests, load_adapters(components, chosen), apply)
