"""The optimizers, one row of a table each: what they need, which arguments they take, how they are built from parameter groups."""

import contextlib
import importlib
import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from sdlora.errors import SdloraError

Groups = list[dict[str, Any]]
Build = Callable[[Groups, dict[str, Any]], torch.optim.Optimizer]
State = Callable[[Sequence[int], Mapping[str, Any]], int]  # (a parameter's shape, the optimizer's arguments) -> bytes it remembers
BLOCK, SMALLEST = 256, 4096  # bitsandbytes: numbers that share a scale; numbers of a parameter below which nothing is in 8 bits


@dataclass(frozen=True)
class Kind:
    build: Build
    arguments: tuple[str, ...]  # of the table [optimizer]
    state: State  # what it keeps of a parameter, beside its step
    module: str = "torch"  # what has to be importable
    package: str = ""  # what pip calls it
    finds_rate: bool = False  # estimates the learning rate itself: 1 is its natural setting, and all layers have the same
    averages: bool = False  # keeps an average of the weights, which is the result, and needs no schedule
    rate: float = 1.0  # the default learning rate, in units of AdamW's; of those that find it, the rate itself


def _numbers(count: int) -> State:
    """So many in fp32 for each that is trained."""
    return lambda shape, given: 4 * count * math.prod(shape)


def _adamw_state(shape: Sequence[int], given: Mapping[str, Any]) -> int:
    return (12 if given.get("amsgrad") else 8) * math.prod(shape)


def _eight_bits(shape: Sequence[int], given: Mapping[str, Any]) -> int:
    """Two moments of a byte each and a scale for every block of both; in fp32 where there are few."""
    count = math.prod(shape)
    return 8 * count if count < SMALLEST else 2 * count + 8 * math.ceil(count / BLOCK)


def _factored(shape: Sequence[int], given: Mapping[str, Any]) -> int:
    """Of the second moment the means over its last and over its last but one side (Shazeer & Stern 2018, sec. 3)."""
    count = math.prod(shape)
    second = count if len(shape) < 2 else count // shape[-1] + count // shape[-2]
    return 4 * (second + (count if given.get("beta1") is not None else 0))


def _adamw(groups: Groups, given: dict[str, Any]) -> torch.optim.Optimizer:
    """Fused: on 112 small matrices the plain loop of PyTorch's AdamW costs more than its arithmetic."""
    return torch.optim.AdamW(groups, fused=groups[0]["params"][0].device.type in ("cpu", "cuda"), **given)


def _adamw8bit(groups: Groups, given: dict[str, Any]) -> torch.optim.Optimizer:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it tells of a kernel that only its 4-bit layers miss
    return _class("bitsandbytes.optim", "AdamW8bit")(groups, **given)


def _lion(groups: Groups, given: dict[str, Any]) -> torch.optim.Optimizer:
    return _class("lion_pytorch", "Lion")(groups, **given)


def _adafactor(groups: Groups, given: dict[str, Any]) -> torch.optim.Optimizer:
    """With the rate and the schedule of the settings, not with its own."""
    return _class("transformers.optimization", "Adafactor")(groups, **{"relative_step": False, "scale_parameter": False} | given)


def _prodigy(groups: Groups, given: dict[str, Any]) -> torch.optim.Optimizer:
    return _class("prodigyopt", "Prodigy")(groups, **{"decouple": True, "safeguard_warmup": True} | given)


def _dadaptation(groups: Groups, given: dict[str, Any]) -> torch.optim.Optimizer:
    return _class("dadaptation", "DAdaptAdam")(groups, **{"decouple": True} | given)


def _schedulefree(groups: Groups, given: dict[str, Any]) -> torch.optim.Optimizer:
    optimizer = _class("schedulefree", "AdamWScheduleFree")(groups, **given)
    optimizer.train()
    return optimizer


ADAM = "betas", "eps"
ESTIMATES = "d0", "growth_rate", "use_bias_correction"
KINDS: Mapping[str, Kind] = {
    # Loshchilov & Hutter 2019, arXiv:1711.05101
    "adamw": Kind(_adamw, (*ADAM, "amsgrad"), _adamw_state),
    # Dettmers et al. 2022, arXiv:2110.02861: its state in 8 bits where a matrix has at least 4096 numbers
    "adamw8bit": Kind(_adamw8bit, ADAM, _eight_bits, "bitsandbytes", "bitsandbytes"),
    # Chen et al. 2023, arXiv:2302.06675, sec. 5: a rate 3 to 10 times smaller than AdamW's
    "lion": Kind(_lion, ("betas",), _numbers(1), "lion_pytorch", "lion-pytorch", rate=0.2),
    # Shazeer & Stern 2018, arXiv:1804.04235
    "adafactor": Kind(
        _adafactor, ("eps", "beta1", "clip_threshold", "decay_rate", "scale_parameter"), _factored, "transformers", "transformers"
    ),
    # Mishchenko & Defazio 2023, arXiv:2306.06101
    "prodigy": Kind(
        _prodigy, (*ADAM, *ESTIMATES, "beta3", "d_coef", "safeguard_warmup"), _numbers(4), "prodigyopt", "prodigyopt", finds_rate=True
    ),
    # Defazio & Mishchenko 2023, arXiv:2301.07733
    "dadaptation": Kind(_dadaptation, (*ADAM, *ESTIMATES), _numbers(3), "dadaptation", "dadaptation", finds_rate=True),
    # Defazio et al. 2024, arXiv:2405.15682
    "schedulefree": Kind(_schedulefree, (*ADAM, "r", "weight_lr_power"), _numbers(2), "schedulefree", "schedulefree", averages=True),
}


def installed(name: str) -> bool:
    return find_spec(KINDS[name].module) is not None


def missing(name: str) -> str:
    """What to do about an optimizer that is not installed."""
    return f"optimizer.name is {name!r}, which needs a package that is not installed: pip install {KINDS[name].package}"


def build(
    groups: Groups, name: str = "adamw", weight_decay: float = 0.01, arguments: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """The optimizer `name` over `groups`, each {"params": …, "lr": …}. Weight decay is decoupled, W ← W − lr·λ·W, in all of them.

    SdloraError if its package is not installed.
    """
    if not installed(name):
        raise SdloraError(missing(name))
    with contextlib.redirect_stdout(io.StringIO()):  # some tell on stdout what they were asked for
        return KINDS[name].build(groups, {"weight_decay": weight_decay, **(arguments or {})})


def found_rate(optimizer: torch.optim.Optimizer) -> float:
    """What Prodigy and D-Adaptation multiply the rate by at the moment (their d); 1 for all others."""
    return float(optimizer.param_groups[0].get("d", 1.0))


def averaged(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> list[Tensor] | None:
    """What an optimizer that averages has for a result, in the order of `parameters`; None for all others.

    Schedule-free AdamW trains y = (1 − β₁) z + β₁ x and its result is x. Its own eval() and train() move y to x and back, which
    rounds, so that saving would change the run; this leaves the run as it is. A parameter that never had a gradient (of a text
    encoder's last layer, where the one before it is read) has no z, and stays.
    """
    if not hasattr(optimizer, "eval") or not any("z" in state for state in optimizer.state.values()):
        return None
    beta1 = {id(p): group["betas"][0] for group in optimizer.param_groups for p in group["params"]}
    z = {id(p): state["z"] for p, state in optimizer.state.items() if "z" in state}
    with torch.no_grad():
        return [torch.lerp(p.detach(), z[id(p)], 1 - 1 / beta1[id(p)]) if id(p) in z else p.detach() for p in parameters]


def _class(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)
