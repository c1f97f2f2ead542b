"""The settings of `sdlora benchmark train`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sdlora.benchmark.names import OVER
from sdlora.config import NameOrFolder, Settings
from sdlora.errors import nearest

OURS, CONTROL, PLAIN, CACHED = CONTENDERS = ("sdlora", "sdlora again", "diffusers + PEFT", "diffusers + PEFT, cached")
PAIRS = ((CONTROL, OURS), (OURS, PLAIN), (OURS, CACHED), (CACHED, PLAIN))  # those that are compared


class TrainingBenchmarkConfig(Settings):
    images: Path  # folder of pictures with captions
    plain: Path  # train/plain_loop.py: the reference is no part of the package
    base: NameOrFolder = "emoji"  # a name or folder of a Stable Diffusion 1.x or 2.x, or random:sd1
    resolution: Annotated[int, Field(ge=8)] | None = None  # pixels; None: the base's own
    batch_size: Annotated[int, Field(ge=1)] = 8
    rank: Annotated[int, Field(ge=1)] = 16
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3

    contenders: tuple[str, ...] = CONTENDERS
    blocks: Annotated[int, Field(ge=2)] = 16  # each times every contender once
    steps: Annotated[int, Field(ge=1)] = 4  # of a sample
    warmup: Annotated[int, Field(ge=0)] = 1  # discarded steps after each switch of contender
    checked: Annotated[int, Field(ge=1)] = 4  # first steps whose losses have to agree before the clock starts
    tolerance: Annotated[float, Field(gt=0)] | None = None  # of these losses, relative; None: 1e-5 in fp32, 2e-2 in bf16 and fp16
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.05  # declared beforehand: ratios in 1 / 1.05 … 1.05 count as equivalent
    limits: dict[str, Annotated[float, Field(gt=0)]] = {  # aimed at: "a / b" at most this
        f"{OURS} / {PLAIN}": 0.667,  # 1.5 times as many images per second
        f"{OURS} / {CACHED}": 0.667,
    }
    memory: dict[str, Annotated[float, Field(gt=0)]] = {f"{OURS} / {PLAIN}": 1.0}  # aimed at: peak of "a" over peak of "b" at most this
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: Annotated[int, Field(ge=100)] = 10_000

    seed: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=0)] = 0  # of PyTorch; 0: as it is
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    output: Path = Path("runs/benchmark-training")

    @model_validator(mode="after")
    def _something_to_compare(self) -> "TrainingBenchmarkConfig":
        for name in self.contenders:
            if name not in CONTENDERS:
                raise ValueError(f"{name!r} is no contender{nearest(name, CONTENDERS)}")
        pairs = [one + OVER + other for one, other in PAIRS]
        for setting, given in (("limits", self.limits), ("memory", self.memory)):
            for name in given:
                if name not in pairs:
                    raise ValueError(f"{setting} names {name!r}, which is not measured{nearest(name, pairs)}")
        if len(set(self.contenders)) < 2:
            raise ValueError("contenders has fewer than two different ones; two or more can be compared")
        return self

    @property
    def bound(self) -> float:
        """Of the losses, relative to each other."""
        return self.tolerance or (1e-5 if self.precision == "fp32" else 2e-2)
