"""The tables of a training's settings that say how a step is made: [optimizer], [loss], [noise], [timesteps], [dropout], [ema]."""

from typing import Annotated, Any, Literal

from pydantic import Field

from sdlora.config import Settings

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Settings):
    """Which one, and its own arguments; unset, they are as its library has them. docs/losses.md says which optimizer takes what."""

    name: Literal["adamw", "adamw8bit", "lion", "adafactor", "prodigy", "dadaptation", "schedulefree"] = "adamw"
    betas: tuple[float, float] | None = None
    eps: Annotated[float, Field(gt=0)] | tuple[float, float] | None = None  # adafactor has two
    amsgrad: bool | None = None
    beta1: Share | None = None  # adafactor: of a first moment, which it does without by default
    beta3: Share | None = None  # prodigy: of the estimate of d; by default √β₂
    clip_threshold: Rate | None = None
    decay_rate: Annotated[float, Field(lt=0)] | None = None
    scale_parameter: bool | None = None  # adafactor: the rate is relative to the root mean square of the weights
    d0: Rate | None = None  # the first estimate of d
    d_coef: Rate | None = None  # what the estimate of d is multiplied by: the way to tune prodigy
    growth_rate: Annotated[float, Field(gt=1)] | None = None  # of d, in a step
    use_bias_correction: bool | None = None
    safeguard_warmup: bool | None = None  # prodigy: here on by default, since a warm-up is
    r: NotNegative | None = None  # schedulefree: power of the step in the average's weights
    weight_lr_power: NotNegative | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Those that were given."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class Loss(Settings):
    kind: Literal["mse", "l1", "huber", "smooth_l1"] = "mse"
    huber_c: Annotated[float, Field(gt=0, lt=1)] | None = None  # threshold of huber and smooth_l1; None: 0.1
    huber_schedule: Literal["snr", "exponential", "constant"] | None = None  # of the threshold, over the timesteps; None: snr
    huber_scale: Rate | None = None  # of the threshold, in the schedules exponential and constant; None: 1
    weighting: Literal["min_snr", "none", "debiased", "p2", "snr_range"] | None = None  # None: min_snr, with the γ of the setting min_snr
    p2_k: NotNegative | None = None  # None: 1
    p2_gamma: NotNegative | None = None  # None: 1
    snr_range: tuple[float, float] | None = None  # None: 0.1 to 5
    unmasked_weight: Annotated[float, Field(ge=0, le=1)] = 0.0  # of what a mask leaves out; 1 would be no mask
    unmasked_probability: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the samples that are trained as if they had no mask


class Noise(Settings):
    offset: NotNegative = 0.0  # 0.05 to 0.1 lets the adapter change how bright a picture is as a whole
    offset_adaptive: float = 0.0  # times |mean of x₀|, of each channel, on top of the offset
    pyramid_levels: CountOrNone = 0  # 6 to 10: noise at many resolutions; 0: white
    pyramid_discount: Annotated[float, Field(gt=0, lt=1)] | None = None  # of each coarser level; None: 0.4
    input_perturbation: NotNegative = 0.0  # 0.1: that much more noise in the input than the target knows of
    zero_snr: bool = False  # the last timestep is pure noise (arXiv:2305.08891); for v-prediction

    @property
    def white(self) -> bool:
        return not (self.offset or self.offset_adaptive or self.pyramid_levels)


class Timesteps(Settings):
    """Which timesteps are trained on: 0 is the picture, 999 the most noise."""

    min: CountOrNone = 0
    max: Count | None = None  # the first that is not trained on; None: all
    distribution: Literal["uniform", "logit_normal", "cosmap"] = "uniform"
    mean: float | None = None  # of the logit-normal distribution; None: 0
    deviation: Rate | None = None  # None: 1
    shift: Rate = 1.0  # more than 1: noisier


class Dropout(Settings):
    """Of the updates while they are trained, as kohya's network_dropout, rank_dropout and module_dropout."""

    network: Share = 0.0  # of each number between A and B; the others are made larger
    rank: Share = 0.0  # of each rank of a layer, sample by sample; the others are made larger
    module: Share = 0.0  # of each layer's update as a whole, batch by batch

    @property
    def on(self) -> bool:
        return self.network > 0 or self.rank > 0 or self.module > 0


class Ema(Settings):
    """An exponential moving average of the adapter; what is saved, drawn and kept is then the average."""

    decay: Share = 0.0  # 0.999 averages over about 1000 steps; 0: off
    warmup: bool = True  # a smaller decay at first: (1 + n) / (10 + n) after n steps

    @property
    def on(self) -> bool:
        return self.decay > 0
