"""The settings of `sdlora benchmark`. The defaults are configs/benchmark-emoji.toml."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sdlora.config import NameOrFolder, Settings

PROMPTS = ("a cat face, flat emoji", "a rocket, 3d emoji", "a red apple, noto emoji", "a penguin, line drawing")


class BenchmarkConfig(Settings):
    base: NameOrFolder = "emoji"  # a name, or a folder in diffusers' layout
    adapter: NameOrFolder = (
        "random:rank=16"  # a file, or random:rank=16,seed=0,targets=attention: untrained, but with the cost of a trained one
    )
    strength: float = 1.0
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = PROMPTS
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (1, 2)
    images: Annotated[int, Field(ge=1)] = 1  # drawn in one batch per sample
    steps: Annotated[int, Field(ge=1)] = 20
    guidance: Annotated[float, Field(ge=0)] = 5.0
    width: Annotated[int, Field(ge=8)] | None = None  # pixels; None: the size the base was trained for
    height: Annotated[int, Field(ge=8)] | None = None

    blocks: Annotated[int, Field(ge=2)] = 24  # each draws one prompt and seed under every condition
    warmup: Annotated[int, Field(ge=1)] = 2  # steps of the discarded drawing after each switch of condition
    repeats: Annotated[int, Field(ge=2)] = 20  # of loading, activating, changing the strength and removing
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.05  # declared beforehand: ratios in 1 / 1.05 … 1.05 count as equivalent
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: Annotated[int, Field(ge=100)] = 10_000  # of the bootstrap
    bound: Annotated[int, Field(ge=0, le=255)] = 2  # grey levels of 255 that stacked and fused may differ in any pixel

    seed: Annotated[int, Field(ge=0)] = 0  # of the order of conditions and of the bootstrap
    threads: Annotated[int, Field(ge=0)] = 0  # of PyTorch; 0: as it is
    device: str = "auto"  # a GPU where there is one, else the CPU
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    output: Path = Path("runs/benchmark-emoji")
