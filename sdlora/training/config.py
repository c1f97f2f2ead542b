"""The settings of a training run. Four lines suffice: images, output, trigger and perhaps steps."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sdlora import apply
from sdlora.apply.targets import DEFAULT, TARGETS
from sdlora.config import NameOrFolder, Settings
from sdlora.errors import nearest
from sdlora.training import intervals

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]

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


class TrainConfig(Settings):
    images: Path  # folder of pictures, each with a caption in a .txt file of the same stem
    output: Path  # the run folder
    base: NameOrFolder = "emoji"  # a built-in name, or a folder in diffusers' layout
    vae: Path | None = None  # a folder or file with another VAE than the base's own
    family: Literal["sd1", "sd2", "sdxl"] | None = None  # None: found from the base's tensors
    prediction: Literal["epsilon", "v_prediction"] | None = None  # None: found from the base's tensors and configuration
    variant: str | None = None  # of the files in a folder: fp16, say
    trigger: tuple[str, ...] | str = ()  # the word or words in the captions that call the adapter; recorded in the file
    caption: str | None = None  # for images without a .txt file
    name: str = ""  # the adapter's title; empty: the name of the image folder
    format: Literal["kohya", "peft"] = "kohya"

    rank: Count = 8
    alpha: Rate | None = None  # ΔW = (α / r) B A; None: as the rank, so that the rate does not depend on it
    targets: tuple[str, ...] = DEFAULT
    unet: Part = Part()
    text_encoder: Part = Part()
    text_encoder_2: Part = Part()  # SDXL's second

    steps: Count = 300  # optimiser steps
    batch_size: Count = 8
    accumulate: Count = 1  # batches per optimiser step
    learning_rate: Rate | None = None  # None: 2e-3 for the base emoji, 1e-4 for others
    text_learning_rate: Rate | None = None  # of the text encoders, where they are a target; None: half the learning rate
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: CountOrNone = 10  # steps, linear
    weight_decay: NotNegative = 0.01  # of AdamW
    clip: NotNegative = 1.0  # the largest norm of all gradients together; 0: any
    min_snr: NotNegative = 5.0  # γ of arXiv:2303.09556; 0: all timesteps weigh alike
    stratified: bool = True  # each timestep of a batch from a stratum of its own: less noise in the gradient, the same mean
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of samples that are trained with an empty caption
    flip: bool = False  # mirror every other sample, by chance
    resolution: Annotated[int, Field(ge=8)] | None = None  # pixels; None: the base's own

    seed: Annotated[int, Field(ge=0)] = 0
    init: Path | None = None  # an adapter file whose weights the training starts with
    save_every: CountOrNone | str = 100  # steps between saved adapters, states and samples, or "1 epoch"; 0: only at the end
    keep_states: CountOrNone = 3  # the newest states stay, so that a damaged one falls back to the one before; 0: all
    keep_checkpoints: CountOrNone = 0  # the newest of the adapters saved on the way; 0: all. The best and the last always stay
    trackers: tuple[str, ...] = ()  # that are told the metrics as well, by accelerate's names: tensorboard, wandb, …
    cache: Path | None = None  # folder for latents and embeddings; None: in the run folder
    device: str = "auto"  # cuda, mps or cpu
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of base and products; trained numbers, loss and optimiser are fp32
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    gradient_checkpointing: bool = False  # compute activations twice instead of keeping them: less memory, more time
    vae_tiling: bool = False  # encode large pictures in overlapping tiles
    compile: bool = False  # torch.compile the U-Net
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
    def triggers(self) -> tuple[str, ...]:
        words = (self.trigger,) if isinstance(self.trigger, str) else self.trigger
        return tuple(word for word in words if word)

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
        rate = self.learning_rate or (EMOJI_RATE if self.base == "emoji" else DEFAULT_RATE)
        own = {name: getattr(self, name) for name in self.learning}
        ranks = {name: part.rank or self.rank for name, part in own.items()}
        changes: dict[str, Any] = {
            name: part.model_copy(update={"rank": ranks[name], "alpha": part.alpha or self.alpha or float(ranks[name])})
            for name, part in own.items()
        }
        changes |= {
            "alpha": self.alpha or float(self.rank),
            "learning_rate": rate,
            "text_learning_rate": self.text_learning_rate or rate / 2,
            "output": self.output.absolute(),
            "images": self.images.absolute(),
            "vae": self.vae and self.vae.absolute(),
            "init": self.init and self.init.absolute(),
        }
        return self.model_copy(update=changes)


def component_of(target: str) -> str:
    """Which of COMPONENTS the target lies in."""
    return TARGETS[target].partition("\\")[0]
