"""The settings of `sdlora benchmark`. The defaults are configs/benchmark-emoji.toml."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sdlora.benchmark.names import AGAINST, ALONE, BASE, CHANGE, CHANGES, COMPARED, CONDITION_NAMES, FIRST, HELP, LATE, OVER, READY, THEIRS
from sdlora.config import NAME_OR_FOLDER, BaseModelName, NameOrFolder, Settings
from sdlora.errors import nearest

PROMPTS = ("a cat face, flat emoji", "a rocket, 3d emoji", "a red apple, noto emoji", "a penguin, line drawing")
LIMITS = {
    "fused": 1.01,
    "stacked": 1.10,
    "stacked 8": 1.25,
    "base / diffusers": 0.77,  # 1.3 times as many images per second
    f"{READY} / {THEIRS}": 0.1,
    f"{LATE} / {READY}": 1.1,
}
SECONDS = {CHANGE: 0.001, CHANGES: 0.001, HELP: 0.3, FIRST: 6.0}


class BenchmarkConfig(Settings):
    base: BaseModelName = "emoji"  # a name, file or folder, a cached Hub id, or random:sd1: untrained, but of true size
    vae: Path | None = None  # a VAE in place of the base's own
    adapter: NameOrFolder = (
        "random:rank=16"  # a file, or random:rank=16,seed=0,targets=attention: untrained, but with the cost of a trained one
    )
    adapters: Annotated[tuple[str, ...], NAME_OR_FOLDER] = ()  # one for each prompt, in place of `adapter`
    strength: float = 1.0  # of one adapter; several share it
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = PROMPTS
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (1, 2)
    images: Annotated[int, Field(ge=1)] = 1  # of one sample, with seeds that count up
    batch: Annotated[int, Field(ge=1)] | None = None  # drawn at a time; None: all images of a sample
    steps: Annotated[int, Field(ge=1)] = 20
    guidance: Annotated[float, Field(ge=0)] = 5.0
    width: Annotated[int, Field(ge=8)] | None = None  # pixels; None: the size the base was trained for
    height: Annotated[int, Field(ge=8)] | None = None

    request: dict[str, str | int | float | bool] = {}  # further settings of a picture, as `sdlora.Request` has them

    conditions: tuple[str, ...] = ()  # none: all that are installed, PEFT with four adapters left out
    pairing: Literal["steps", "pictures"] = "steps"  # what takes turns: steps of two pictures drawn at the same time, or whole pictures
    blocks: Annotated[int, Field(ge=2)] = 32  # each draws one prompt and seed under every condition
    runs: tuple[Annotated[int, Field(ge=1)], ...] = ()  # blocks of each prompt, one after the other; in place of `blocks`
    warmup: Annotated[int, Field(ge=0)] = 2  # steps of the discarded drawing after each switch of condition
    checked: Annotated[int, Field(ge=1)] | None = None  # steps of the pictures that are compared before the clock starts; None: all
    rounds: Annotated[int, Field(ge=0)] = 3  # of the drawings that tell peak memory and the time of a first picture
    repeats: Annotated[int, Field(ge=2)] = 20  # of loading, activating, changing the strength and removing
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.05  # declared beforehand: ratios in 1 / 1.05 … 1.05 count as equivalent
    margins: dict[str, Annotated[float, Field(gt=0, lt=1)]] = {"base again": 0.01, "fused": 0.01}  # of single conditions against the base
    limits: dict[str, Annotated[float, Field(gt=0)]] = LIMITS  # aimed at: "a / b" at most this; "a" alone is against the base
    seconds: dict[str, Annotated[float, Field(gt=0)]] = SECONDS  # aimed at: an operation takes at most so long
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: Annotated[int, Field(ge=100)] = 10_000  # of the bootstrap
    bound: Annotated[int, Field(ge=0, le=255)] = 2  # grey levels of 255 that stacked and fused may differ in any pixel
    bound_reference: Annotated[int, Field(ge=0, le=255)] = 8  # the same for stock diffusers, whose σ differ from ours by 1e-5

    seed: Annotated[int, Field(ge=0)] = 0  # of the order of conditions and of the bootstrap
    threads: Annotated[int, Field(ge=0)] = 0  # of PyTorch; 0: as it is
    device: str = "auto"  # a GPU where there is one, else the CPU
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    output: Path = Path("runs/benchmark-emoji")

    @model_validator(mode="after")
    def _one_for_each_prompt(self) -> "BenchmarkConfig":
        for name in ("runs", "adapters"):
            given = getattr(self, name)
            if given and len(given) != len(self.prompts):
                raise ValueError(f"{name} has {len(given)} entries for {len(self.prompts)} prompts; give one for each")
        if self.runs and sum(self.runs) < 2:
            raise ValueError("runs makes fewer than two blocks, and an interval needs two")
        return self

    @model_validator(mode="after")
    def _compared_exists(self) -> "BenchmarkConfig":
        alone = [name for name in CONDITION_NAMES if name != BASE]
        pairs = [one + OVER + other for one, other in (*AGAINST, *COMPARED)]
        settings = ("margins", self.margins, alone), ("limits", self.limits, [*alone, *pairs]), ("seconds", self.seconds, ALONE)
        for setting, given, known in settings:
            for name in given:
                if name not in known:
                    raise ValueError(f"{setting} names {name!r}, which is not measured{nearest(name, known)}")
        return self

    @model_validator(mode="after")
    def _steps_take_turns(self) -> "BenchmarkConfig":
        if self.pairing == "steps" and self.steps < 2:
            raise ValueError("pairing = steps compares the steps behind the first, and steps is 1; draw more, or set pairing = pictures")
        if self.pairing == "steps" and self.conditions and set(self.conditions) == {BASE}:
            raise ValueError("conditions names the base alone, and with pairing = steps it takes turns with another; add 'base again'")
        if self.pairing == "pictures" and not self.warmup:
            raise ValueError("warmup is 0, and with pairing = pictures the first step after a switch would be timed; set 1 or more")
        return self

    @property
    def planned(self) -> int:
        """Blocks in all."""
        return sum(self.runs) or self.blocks
