"""Several processes, one training: each computes its share of every batch, and their gradients are added.

Every draw is a function of (seed, step, position), never of a process, and the batch of P processes with n samples each is the one
of a single process with P · n samples. So the result is the same but for the order in which numbers are added up, and but for
dropout, which each process draws for itself.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.errors import SdloraError
from sdlora.together import joined, launched, rank
from sdlora.training import sharding, zero
from sdlora.training.batches import Batch
from sdlora.training.config import TrainConfig
from sdlora.training.sharding import Sharding

REFUSED = {  # variable that accelerate sets -> what it stands for, and why not
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is for transformers of its own kind",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor and context parallelism are not for a U-Net",
}


@dataclass(frozen=True)
class World:
    """This process among all; alone, every method is the identity."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    sharding: Sharding | None = None  # where the base is split among them

    @property
    def main(self) -> bool:
        """The one that writes."""
        return self.rank == 0

    def share(self, batch: Batch) -> Batch | None:
        """This process's rows of a batch: every size-th. None where there are none."""
        if self.size == 1:
            return batch
        rows = slice(self.rank, None, self.size)
        changes: dict[str, Any] = {f.name: _rows(getattr(batch, f.name), rows) for f in fields(batch)}
        return replace(batch, **changes) if len(changes["captions"]) else None

    def summed(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """All processes' losses added up, and so their gradients, in place."""
        if self.size == 1:
            return loss
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        whole = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([*(grad.flatten() for grad in whole), torch.tensor([loss], device=self.device, dtype=torch.float32)])
        torch.distributed.all_reduce(flat)
        start = 0
        for grad in whole:
            grad.copy_(flat[start : start + grad.numel()].view_as(grad))
            start += grad.numel()
        return float(flat[-1])

    def any(self, flag: bool) -> bool:
        """Whether any process says yes."""
        if self.size == 1:
            return flag
        count = torch.tensor([float(flag)], device=self.device)
        torch.distributed.all_reduce(count)
        return bool(count.item())

    def same(self, number: int) -> bool:
        """Whether all processes have this number."""
        if self.size == 1:
            return True
        ends = torch.tensor([number, -number], device=self.device)
        torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
        largest, smallest = ends.tolist()
        return bool(largest == -smallest)

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the block before the others do, which then find what it has written."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()


ALONE = World()


def _rows(value: Any, rows: slice) -> Any:
    return value[rows] if isinstance(value, (Tensor, tuple, list)) else value


def widened(config: TrainConfig, world: World) -> TrainConfig:
    """With the batches of all processes together."""
    prior = config.prior.model_copy(update={"batch_size": config.prior.batch_size * world.size})
    return config.model_copy(update={"batch_size": config.batch_size * world.size, "prior": prior})


def main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def world() -> World:
    """As `accelerate launch` or torchrun started us; SdloraError for what they ask and cannot be."""
    check()
    if launched() == 1:
        return World()
    state = joined()
    return World(state.process_index, state.num_processes, state.device, sharding.told())


def remark() -> str:
    """What becomes of what DeepSpeed was told; empty where it was told nothing."""
    found = zero.told()
    return found.remark if found else ""


def check(config: TrainConfig | None = None) -> None:
    """SdloraError for what `accelerate launch` was told and a training of an adapter cannot do, or that the settings contradict."""
    for variable, why in REFUSED.items():
        if os.environ.get(variable, "").lower() in ("true", "1"):
            what = variable.removeprefix("ACCELERATE_USE_").replace("_", " ")
            raise SdloraError(f"accelerate was told to use {what}: {why}; run accelerate config again, or launch with --multi_gpu alone")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "")
    if precision == "fp8":
        raise SdloraError("accelerate was told --mixed_precision fp8, which is not there; take bf16, fp16 or no")
    if config and config.precision != "auto" and precision in ("bf16", "fp16") and precision != config.precision:
        raise SdloraError(f"accelerate was told --mixed_precision {precision}, and precision is {config.precision}; leave one of them out")
    split = sharding.told()
    if config:
        sharding.check(config, split)
        zero.check(config, zero.told(), launched())
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend not in ("", "no"):
        raise SdloraError(f"accelerate was told --dynamo_backend {backend}; set compile = true in the settings instead, which is inductor")
    accumulate = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if config and accumulate not in ("", "1", "auto", str(config.accumulate)):
        said = f"accelerate was told --gradient_accumulation_steps {accumulate}, and accumulate is {config.accumulate}"
        raise SdloraError(f"{said}; set accumulate = {accumulate} in the settings")
