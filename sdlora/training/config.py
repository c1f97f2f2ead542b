"""The settings of a training run. Four lines suffice: images, output, trigger and perhaps steps."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sdlora import apply, models
from sdlora.apply.targets import DEFAULT, TARGETS
from sdlora.config import BaseModelName, Settings
from sdlora.data.settings import CACHES, DataSettings
from sdlora.errors import nearest
from sdlora.training import contradictions, intervals
from sdlora.training.optimizers import KINDS
from sdlora.training.tables import Count, CountOrNone, Dropout, Ema, Loss, Noise, NotNegative, Optimizer, Rate, Timesteps

UNET = "unet"
COMPONENTS = (UNET, "text_encoder", "text_encoder_2")

EMOJI_RATE = 2e-3  # the built-in base is narrow (64–144 channels) and wants a larger rate than Stable Diffusion
DEFAULT_RATE = 1e-4


class Prior(Settings):
    """Prior preservation (Ruiz et al. 2022, arXiv:2208.12242, sec. 3.3): the base's own pictures are trained on as well, so that it
    does not forget what else the caption's words mean. On as soon as there are prompts."""

    prompts: tuple[str, ...] = ()  # what to draw with the base before training; captions of the pictures drawn
    images: Count = 16  # pictures in all; the prompts take turns
    weight: NotNegative = 1.0  # of their loss beside that of the images
    batch_size: CountOrNone = 0  # of them in each batch, beside the images; 0: as many as images
    sampling_steps: Count = 12
    guidance: NotNegative = 4.0

    @property
    def on(self) -> bool:
        return bool(self.prompts) and self.weight > 0


class Samples(Settings):
    """Pictures drawn with every adapter that the run saves, from the saved file."""

    count: CountOrNone = 4  # captions of the image folder that serve as prompts if none are given; 0: no samples
    prompts: tuple[str, ...] = ()
    seed: int = 1  # the same for all prompts
    steps: Count = 20
    guidance: NotNegative = 5.0


class Validation(Settings):
    """A loss on pictures that are not trained on, with noise and timesteps that never change; of all saved and validated steps the
    best is kept. It touches nothing of the training."""

    images: Path | None = None  # a folder of such pictures with captions
    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0  # or the share of the image folder to hold out, chosen by content
    every: Count | None = None  # steps between validations, beside those at the start and the end; None: a tenth of the run
    timesteps: Count = 8  # per picture, one in the middle of each equal stratum

    @property
    def on(self) -> bool:
        return self.images is not None or self.fraction > 0

    @model_validator(mode="after")
    def _clear(self) -> "Validation":
        if self.images is not None and self.fraction > 0:
            raise ValueError("validation has both images and a fraction; leave one of them out")
        if not self.on and (self.every is not None or self.timesteps != 8):
            raise ValueError("validation has settings but no pictures; give validation.images or validation.fraction, or leave them out")
        return self


class Part(Settings):
    """What one network of the base gets; unset, it is as the settings of the same name outside."""

    train: bool = True  # false: nothing here, whatever the targets say
    rank: Count | None = None
    alpha: Rate | None = None
    learning_rate: Rate | None = None  # of a text encoder: as text_learning_rate

    @property
    def bare(self) -> bool:
        return self.rank is None and self.alpha is None and self.learning_rate is None


class TrainConfig(DataSettings):  # images, captions, buckets, cache, …: sdlora/data/settings.py
    output: Path  # the run folder
    base: BaseModelName = "emoji"  # a built-in name, a file, a folder in diffusers' layout, or a cached Hub id
    vae: Path | None = None  # a folder or file with another VAE than the base's own
    family: Literal["sd1", "sd2", "sdxl"] | None = None  # None: found from the base's tensors
    prediction: Literal["epsilon", "v_prediction"] | None = None  # None: found from the base's tensors and configuration
    variant: str | None = None  # of the files in a folder: fp16, say
    name: str = ""  # the adapter's title; empty: the name of the image folder
    format: Literal["kohya", "peft"] = "kohya"

    rank: Count = 8
    alpha: Rate | None = None  # ΔW = (α / r) B A; None: as the rank, so that the rate does not depend on it
    targets: tuple[str, ...] = DEFAULT
    unet: Part = Part()
    text_encoder: Part = Part()
    text_encoder_2: Part = Part()  # SDXL's second
    include: tuple[str, ...] = ()  # patterns of layers of the targets ("unet.up", "*.attn2.*", "b-lora-style"); none: all
    exclude: tuple[str, ...] = ()  # patterns of layers that are left out
    ranks: dict[str, int] = {}  # by pattern, the last that matches; 0: not trained. The scale α / r stays
    alphas: dict[str, float] = {}  # by pattern
    rates: dict[str, float] = {}  # by pattern: factors of the learning rate
    rslora: bool = False  # scale by α / √r instead of α / r (arXiv:2312.03732); in the file α is α √r then

    steps: Count = 300  # optimiser steps
    batch_size: Count = 8
    accumulate: Count = 1  # batches per optimiser step
    learning_rate: Rate | None = None  # None: 2e-3 for the base emoji, 1e-4 for others
    text_learning_rate: Rate | None = None  # of the text encoders, where they are a target; None: half the learning rate
    lora_plus: Rate = 1.0  # how many times as fast B learns as A; 16 in arXiv:2402.12354
    schedule: Literal["cosine", "cosine_restarts", "linear", "polynomial", "wsd", "rex", "inverse_sqrt", "constant"] = "cosine"
    schedule_cycles: Count | None = None  # of cosine_restarts; None: 3
    schedule_power: Rate | None = None  # of polynomial; None: 2
    schedule_decay: Annotated[float, Field(gt=0, le=1)] | None = None  # of wsd: the share of the steps in which it falls; None: 0.2
    schedule_floor: Annotated[float, Field(ge=0, lt=1)] | None = None  # what the rate falls to, as a share of itself; None: 0
    warmup: CountOrNone = 10  # steps, linear
    weight_decay: NotNegative = 0.01  # decoupled, in every optimizer
    clip: NotNegative = 1.0  # the largest norm of all gradients together; 0: any
    max_norm: NotNegative = 0.0  # the largest norm of a layer's ΔW, held after every step; 0: any
    explosion: NotNegative = 10.0  # stop if the loss's running median grows that many times; 0: never
    min_snr: NotNegative = 5.0  # γ of arXiv:2303.09556; 0: all timesteps weigh alike
    stratified: bool = True  # each timestep of a batch from a stratum of its own: less noise in the gradient, the same mean

    seed: Annotated[int, Field(ge=0)] = 0
    init: Path | None = None  # an adapter file whose weights the training starts with
    save_every: CountOrNone | str = 100  # steps between saved adapters, states and samples, or "1 epoch"; 0: only at the end
    keep_states: CountOrNone = 3  # the newest states stay, so that a damaged one falls back to the one before; 0: all
    keep_checkpoints: CountOrNone = 0  # the newest of the adapters saved on the way; 0: all. The best and the last always stay
    trackers: tuple[str, ...] = ()  # that are told the metrics as well, by accelerate's names: tensorboard, wandb, …
    device: str = "auto"  # cuda, mps or cpu
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of base and products; trained numbers, loss and optimiser are fp32
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    gradient_checkpointing: bool = False  # compute activations twice instead of keeping them: less memory, more time
    vae_tiling: bool = False  # encode large pictures in overlapping tiles
    compile: bool = False  # torch.compile the U-Net
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    noise: Noise = Noise()
    timesteps: Timesteps = Timesteps()
    dropout: Dropout = Dropout()
    ema: Ema = Ema()
    prior: Prior = Prior()
    samples: Samples = Samples()
    validation: Validation = Validation()

    @model_validator(mode="after")
    def _saving(self) -> "TrainConfig":
        if not intervals.valid(self.save_every):
            raise ValueError(f'save_every is {self.save_every!r}; write a number of steps, or "1 epoch"')
        return self

    @model_validator(mode="after")
    def _targets_exist(self) -> "TrainConfig":
        if not self.targets:
            raise ValueError(f"targets is empty; valid: {', '.join(TARGETS)}")
        for target in self.targets:
            if target not in TARGETS:
                raise ValueError(f"targets has {target!r}, which is unknown{nearest(target, TARGETS)}")
        if not self.parts:
            raise ValueError("every part that has a target is switched off (train = false); leave one on")
        for name in COMPONENTS:
            if name not in self.learning and not getattr(self, name).bare:
                raise ValueError(f"{name} has settings, but nothing in it is trained; add a target that lies there, or leave {name} out")
        return self

    @model_validator(mode="after")
    def _agrees(self) -> "TrainConfig":
        problem = contradictions.first(self)
        if problem:
            raise ValueError(problem)
        return self

    @property
    def reading(self) -> dict[str, Any]:
        """What models.load is told beside the base's name."""
        return {"family": self.family, "prediction": self.prediction, "vae": self.vae, "variant": self.variant}

    @property
    def parts(self) -> dict[str, apply.Part]:
        """What each target gets, of those that are switched on."""
        found = {target: getattr(self, component_of(target)) for target in dict.fromkeys(self.targets)}
        return {target: apply.Part(part.rank or self.rank, part.alpha or self.alpha) for target, part in found.items() if part.train}

    @property
    def learning(self) -> list[str]:
        """The components that are trained."""
        return [name for name in COMPONENTS if name in {component_of(target) for target in self.parts}]

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder is trained."""
        return any(component != UNET for component in self.learning)

    def rate(self, component: str) -> float:
        """The largest learning rate of one of `learning`, once the settings are settled."""
        common = self.learning_rate if component == UNET else self.text_learning_rate
        rate = getattr(self, component).learning_rate or common
        assert rate is not None
        return rate

    @property
    def title(self) -> str:
        return self.name or self.images.name

    @property
    def samples_per_step(self) -> int:
        """Of the image folder, in one optimiser step."""
        return self.batch_size * self.accumulate

    @property
    def priors_per_batch(self) -> int:
        return (self.prior.batch_size or self.batch_size) if self.prior.on else 0

    def settled(self) -> "TrainConfig":
        """With the defaults that follow from other settings spelled out."""
        kind = KINDS[self.optimizer.name]
        usual = 1.0 if kind.finds_rate else kind.rate * (EMOJI_RATE if self.base == "emoji" else DEFAULT_RATE)
        rate = self.learning_rate or usual
        weighting, held = self.loss.weighting or "min_snr", self.validation.images
        own = {name: getattr(self, name) for name in self.learning}
        # a part without a rank of its own stays without one: so `rank` means the same in a run's config.toml and in an adapter's header
        changes: dict[str, Any] = {
            name: part.model_copy(update={"alpha": float(part.rank)})
            for name, part in own.items()
            if part.rank and not part.alpha and not self.alpha
        }
        changes |= {
            "alpha": self.alpha or float(self.rank),
            "learning_rate": rate,
            "text_learning_rate": self.text_learning_rate or (rate if kind.finds_rate else rate / 2),
            "schedule": "constant" if kind.averages else self.schedule,
            "min_snr": self.min_snr if weighting == "min_snr" else 0.0,
            "loss": self.loss.model_copy(update={"weighting": weighting}),
            "output": self.output.absolute(),
            "base": self.base if self.base in models.BUILT_IN else _absolute(self.base),
            "cache": self.cache if self.cache in CACHES else str(Path(self.cache).expanduser().absolute()),
            "validation": self.validation.model_copy(update={"images": held and held.absolute()}),
            **{n: path.absolute() for n in ("images", "regularisation", "metadata", "vae", "init") if (path := getattr(self, n))},
        }
        return self.model_copy(update=changes)


def _absolute(base: str) -> str:
    """A base's path seen from everywhere; a Hub id as it is."""
    path = Path(base).expanduser()
    return str(path.absolute()) if path.exists() else base


def component_of(target: str) -> str:
    """Which of COMPONENTS the target lies in."""
    return TARGETS[target].partition("\\")[0]
