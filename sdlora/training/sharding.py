"""FSDP and ZeRO 3: during the steps each process holds its share of the frozen base; the adapter is small, and whole in every process.

PyTorch's fully_shard (Zhao et al. 2023, arXiv:2304.11277, in its second version) gathers the weights of one block at a time, before its
part of the forward and of the backward pass, with the bits that they had. The adapter's gradients are added as they are without it: the
adapter is that of as many processes without FSDP, but for rounding; states and files are of one form, and one goes on from the other.
"""

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sdlora.errors import SdloraError, nearest
from sdlora.models import Components
from sdlora.training import zero

if TYPE_CHECKING:
    from sdlora.training.config import TrainConfig

POLICIES = ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP")
REFUSED = {  # what accelerate's plugin can be told to do, and what to do instead
    "FSDP_OFFLOAD_PARAMS": "leave it out: a share of the base is small beside its activations",
    "FSDP_ACTIVATION_CHECKPOINTING": "set gradient_checkpointing = true in the settings instead",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "set gradient_checkpointing = true in the settings instead",
}


@dataclass(frozen=True)
class Sharding:
    """What accelerate was told of FSDP, as far as it means something for a frozen base; ZeRO 3 is this by default."""

    policy: str = POLICIES[0]  # which modules are gathered one at a time: blocks of some classes, modules of some size, or all at once
    classes: tuple[str, ...] = ()  # of the blocks; none: those that the model names as not to be split
    smallest: int = 0  # numbers in a module of its own, by size
    reshard: bool = True  # let go of a block's weights between its forward and its backward pass, and gather them twice


def told(environment: Mapping[str, str] = os.environ) -> Sharding | None:
    """As `accelerate launch --use_fsdp`, or `--use_deepspeed --zero_stage 3`, says in its environment variables; None without them.
    SdloraError for what cannot be."""
    deepspeed = zero.told(environment)
    if deepspeed and deepspeed.stage == 3:
        return Sharding()
    if environment.get("ACCELERATE_USE_FSDP", "").lower() not in zero.YES:
        return None
    if environment.get("WORLD_SIZE", "1") == "1":
        raise SdloraError("accelerate was told to use FSDP, and there is one process; launch several, or leave it out")
    version = environment.get("FSDP_VERSION", "1")
    if version != "2":
        raise SdloraError(f"accelerate was told to use FSDP in version {version}, which splits flattened weights; take --fsdp_version 2")
    for variable, instead in REFUSED.items():
        if environment.get(variable, "").lower() in zero.YES:
            raise SdloraError(f"accelerate was told --{variable.lower()} true; {instead}")
    ignored = environment.get("FSDP_IGNORED_MODULES", "")
    if ignored:
        raise SdloraError(f"accelerate was told fsdp_ignored_modules {ignored}; leave it out: the adapter is never split, the base always")
    policy = environment.get("FSDP_AUTO_WRAP_POLICY", POLICIES[0]).upper()
    if policy not in POLICIES:
        raise SdloraError(f"accelerate was told --fsdp_auto_wrap_policy {policy}, which is unknown{nearest(policy, POLICIES)}")
    classes = tuple(name.strip() for name in environment.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(",") if name.strip())
    reshard = environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    return Sharding(policy, classes, int(zero.number(environment, "FSDP_MIN_NUM_PARAMS", "1e8")), reshard)


def check(config: "TrainConfig", how: Sharding | None) -> None:
    """SdloraError for settings that a split base cannot follow."""
    if how and config.compile:
        raise SdloraError(
            "compile = true with FSDP or ZeRO 3: weights that are gathered block by block break the compiled U-Net up; leave one out"
        )


def split(components: Components, config: "TrainConfig", how: Sharding | None, device: torch.device, size: int) -> Components:
    """`components` with twins of the networks that the steps go through, each in shares on the `size` processes.

    The originals stay whole and are not touched; as nothing holds their weights beside themselves, they can be moved or released.
    All processes call this, and each forward and backward pass of a twin, together.
    """
    if how is None:
        return components
    twins = {name: _twin(module) for name, module in components.modules.items() if name in {"unet", *config.learning}}
    units = {name: _units(twin, how) for name, twin in twins.items()}
    _known(how, twins)
    fully_shard = _fully_shard()
    mesh = torch.distributed.init_device_mesh(device.type, (size,))
    for name, twin in twins.items():
        for unit in units[name]:
            fully_shard(unit, mesh=mesh, reshard_after_forward=how.reshard)
        if not _by_name(twin):
            fully_shard(twin, mesh=mesh, reshard_after_forward=False)  # what is left is needed first in the backward pass
    encoders = [twins.get(name, module) for name, module in components.modules.items() if name != "unet"]
    return replace(components, unet=twins["unet"], text_encoders=tuple(encoders))


def whole(components: Components, working: Components) -> list[nn.Module]:
    """The originals of what is split in `working`."""
    return [own for own, used in zip(components.modules.values(), working.modules.values(), strict=True) if own is not used]


def _twin(module: nn.Module) -> Any:
    """Other modules around the same numbers, frozen. The parameters are its own: what is not split stays where it is when the
    original is moved, which PyTorch does within a Parameter."""
    own = {id(p): nn.Parameter(p.detach().contiguous(), requires_grad=False) for p in module.parameters()}  # a share is contiguous
    return copy.deepcopy(module, {**own, **{id(buffer): buffer for buffer in module.buffers()}})


def _units(twin: nn.Module, how: Sharding) -> list[nn.Module]:
    """The modules below it that are gathered one at a time, the innermost first."""
    wanted = _policy(twin, how)
    called = [part for part in twin.modules() if type(part).forward is not nn.Module.forward]  # a list of modules never is
    inner = [part for part in called if part is not twin and not _by_name(part) and any(True for _ in part.parameters())]
    return [part for part in reversed(inner) if wanted(part)]


def gathered(module: nn.Module, how: Sharding) -> int:
    """Numbers of `module` that are whole at the worst moment of a step: what is in no unit of its own, which stays once it is there;
    a unit, the next one, which comes meanwhile, and as much again for what comes, in the order in which it is sent."""
    own = _own_numbers(_units(module, how))
    rest = sum(parameter.numel() for parameter in module.parameters()) - sum(own)
    if not how.reshard:
        return max(2 * rest, rest + sum(own))
    return max(2 * rest, rest + max(map(sum, pairwise([*own, 0])), default=0) + max(own, default=0))


def _own_numbers(units: list[nn.Module]) -> list[int]:
    """Of each unit, without what is in one inside it; in the order of the units."""
    taken: set[int] = set()
    result = []
    for unit in units:
        new = {id(parameter): parameter.numel() for parameter in unit.parameters() if id(parameter) not in taken}
        taken |= new.keys()
        result.append(sum(new.values()))
    return result


def _by_name(part: nn.Module) -> bool:
    """Whether it looks itself up by the name of its class, which fully_shard changes: transformers' models, for their hidden states.
    What is in no smaller module of theirs stays whole: a norm and a projection."""
    from transformers import PreTrainedModel

    return isinstance(part, PreTrainedModel)


def _policy(twin: nn.Module, how: Sharding) -> Callable[[nn.Module], bool]:
    """As accelerate has it."""
    if how.policy == "NO_WRAP":
        return lambda part: False
    if how.policy == "SIZE_BASED_WRAP":
        return lambda part: sum(parameter.numel() for parameter in part.parameters()) > how.smallest
    names = how.classes or tuple(getattr(twin, "_no_split_modules", None) or ())
    return lambda part: type(part).__name__ in names


def _known(how: Sharding, twins: Mapping[str, nn.Module]) -> None:
    there = {type(part).__name__ for twin in twins.values() for part in twin.modules()}
    for name in how.classes if how.policy == POLICIES[0] else ():
        if name not in there:
            raise SdloraError(
                f"accelerate was told --fsdp_transformer_layer_cls_to_wrap {name}, which is not in the base{nearest(name, there)}"
            )


def _fully_shard() -> Callable[..., Any]:
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise SdloraError(f"a base in shares needs PyTorch 2.6, and this is {torch.__version__}; pip install --upgrade torch") from error
    return fully_shard
