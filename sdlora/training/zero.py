"""DeepSpeed, as far as `accelerate launch --use_deepspeed` means something for an adapter.

ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054) shares out an optimiser's state (stage 1), the gradients too (2), and the weights (3).
Of an adapter, state and gradients are a few MB: every process keeps them, the arithmetic of stages 1 and 2 is that of none, and the
resume stays exact. The weights of the frozen base are split as stage 3 says, by PyTorch's fully_shard (sdlora/training/sharding.py).
"""

import base64
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlora.errors import SdloraError

if TYPE_CHECKING:
    from sdlora.training.config import TrainConfig

YES = ("true", "1", "yes")
FREE = ("", "auto", "none")  # what leaves a value to the script
STAGE = "zero_optimization.stage"
# Sections of DeepSpeed's own configuration that would take a part of the training over -> what to do instead
OWN = {
    "optimizer": "set optimizer.name and learning_rate in the settings instead",
    "scheduler": "set schedule and warmup in the settings instead",
    "amp": "set precision in the settings instead",
    "activation_checkpointing": "set gradient_checkpointing = true in the settings instead",
    "compression_training": "a base that is quantised in training is another base",
    "data_efficiency": "which pictures a step sees follows from the settings alone",
    "curriculum_learning": "which pictures a step sees follows from the settings alone",
}
NUMBERS = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")  # would round the base

COMPARED = (  # names in DeepSpeed's configuration that have to agree with the settings
    "train_micro_batch_size_per_gpu",
    "train_batch_size",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "fp16.enabled",
    "fp16.loss_scale",
    "bf16.enabled",
)


@dataclass(frozen=True)
class Zero:
    """What DeepSpeed's plugin was told, by launcher's flags or by a configuration of its own."""

    stage: int
    config: Mapping[str, Any]  # dotted name in DeepSpeed's configuration -> value, for all that was given and is not "auto"

    @property
    def remark(self) -> str:
        """What becomes of it, in one line."""
        shared = {1: "the state", 2: "state and gradients"}.get(self.stage)
        if self.stage == 3:
            line = "DeepSpeed's ZeRO 3: the frozen base is split among the processes, by PyTorch; adapter and optimiser are whole in each"
        elif shared:
            line = f"DeepSpeed's ZeRO {self.stage}: of an adapter's optimiser {shared} are a few MB and whole in each process"
        else:
            line = "DeepSpeed without ZeRO: plain data parallelism"
        unused = [name for name in self.config if name not in COMPARED and name != STAGE]
        return line + (f"; without effect: {', '.join(unused)}" if unused else "")


def told(environment: Mapping[str, str] = os.environ) -> Zero | None:
    """As accelerate's environment variables say; None without DeepSpeed. SdloraError for what cannot be read, or cannot be."""
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() not in YES:
        return None
    own = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    flags = dict(_flags(environment))
    given = flags if own.lower() in FREE else _file(own, flags)
    stage = given.get(STAGE, 0)
    if not isinstance(stage, int) or not 0 <= stage <= 3:
        raise SdloraError(f"DeepSpeed was told {STAGE} {stage!r}; there are stages 0 to 3")
    found = Zero(stage, given)
    _refuse(found)
    if stage == 3 and environment.get("WORLD_SIZE", "1") == "1":
        raise SdloraError("DeepSpeed was told to split the base (ZeRO 3), and there is one process; launch several, or take stage 2")
    return found


def _flags(environment: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """What the launcher's flags come to in DeepSpeed's configuration, by accelerate's own table; its default stage is 2."""
    stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    yield STAGE, int(stage) if stage.isdigit() else stage
    for name, key in (("OFFLOAD_OPTIMIZER", "offload_optimizer"), ("OFFLOAD_PARAM", "offload_param")):
        device = environment.get(f"ACCELERATE_DEEPSPEED_{name}_DEVICE", "").lower()
        if device not in FREE:
            yield f"zero_optimization.{key}.device", device
    clip = environment.get("ACCELERATE_GRADIENT_CLIPPING", "").lower()
    if clip not in FREE:
        yield "gradient_clipping", number(environment, "ACCELERATE_GRADIENT_CLIPPING", "0")
    experts = environment.get("ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES", "")
    if experts.lower() not in FREE:
        yield "deepspeed_moe_layer_cls_names", experts


def number(environment: Mapping[str, str], variable: str, otherwise: str) -> float:
    """What the launcher hands over as a number; SdloraError where somebody has set something else by hand."""
    given = environment.get(variable, otherwise)
    try:
        found = float(given)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise SdloraError(f"the environment has {variable} = {given!r}; a number is expected: mend it, or unset it")
    return found


def _file(given: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSpeed's own configuration, flattened: the path of a JSON file, or JSON itself, plain or in base64, as accelerate reads it.
    Where it says "auto", the launcher's flag counts, as accelerate fills it in."""
    try:
        text = Path(given).read_text(encoding="utf-8") if os.path.exists(given) else given
        found = json.loads(text if text.lstrip().startswith("{") else base64.urlsafe_b64decode(text))
    except (OSError, ValueError) as error:
        why = f"cannot be read as JSON ({error})" if os.path.exists(given) else "is not there, nor is it JSON itself"
        raise SdloraError(f"--deepspeed_config_file {given} {why}; mend it, or leave it out") from error
    if not isinstance(found, dict):
        raise SdloraError(f"--deepspeed_config_file {given} is no object of names and values; mend it, or leave it out")
    filled = ((name, flags.get(name, value) if value == "auto" else value) for name, value in _flat(found))
    return {name: value for name, value in filled if not (isinstance(value, str) and value.lower() in FREE) and value is not None}


def _flat(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def _refuse(found: Zero) -> None:
    """SdloraError for what would take a part of the training over."""
    for name, value in found.config.items():
        section, _, rest = name.partition(".")
        off = value in (False, 0) or name == "amp.opt_level"  # which says nothing by itself
        if section in OWN and not off:
            raise SdloraError(f"DeepSpeed was told {name} {value}; {OWN[section]}, and leave the section {section} out")
        if rest in NUMBERS and not off:
            raise SdloraError(f"DeepSpeed was told {name} {value}, which would round the base; leave it out")
        if rest == "offload_optimizer.device":
            raise SdloraError(f"DeepSpeed was told {name} {value}; leave it out: an adapter's optimiser keeps a few MB")
        if rest == "offload_param.device":
            raise SdloraError(
                f"DeepSpeed was told {name} {value}; leave it out: with ZeRO 3 a share of the base is small beside its activations, "
                "which gradient_checkpointing = true makes smaller"
            )


def check(config: "TrainConfig", found: Zero | None, size: int) -> None:
    """SdloraError where DeepSpeed's configuration says something else than the settings; "auto" never does."""
    if found is None:
        return
    ours = {
        "train_micro_batch_size_per_gpu": ("batch_size", config.batch_size),
        "train_batch_size": (f"batch_size · accumulate · {size} processes", config.batch_size * config.accumulate * size),
        "gradient_accumulation_steps": ("accumulate", config.accumulate),
        "gradient_clipping": ("clip", config.clip),
        "fp16.loss_scale": ("the loss scale, which is dynamic,", 0),
    }
    for name, (setting, value) in ours.items():
        said = found.config.get(name, value)
        if said != value:
            raise SdloraError(f"DeepSpeed was told {name} {said}, and {setting} is {value}; make them one, or leave {name} out")
    precision = _precision(config)
    for name in ("fp16", "bf16"):
        if found.config.get(f"{name}.enabled") is True and precision != name:
            raise SdloraError(f"DeepSpeed was told {name}.enabled, and precision is {precision}; set precision = {name} in the settings")
        if found.config.get(f"{name}.enabled") is False and precision == name:
            raise SdloraError(f"DeepSpeed was told {name}.enabled false, and precision is {name}; leave the section {name} out")


def _precision(config: "TrainConfig") -> str:
    """As the settings say or `accelerate launch`, whom they may leave it to."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "") if config.precision == "auto" else ""
    return {"no": "fp32", "": config.precision}.get(launched, launched)
