"""Trainable: updates whose tensors are parameters, added to the outputs of frozen layers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.adapter import Adapter, tensors
from sdlora.errors import SdloraError
from sdlora.kinds import lora
from sdlora.layers import named_layers
from sdlora.matching import matched

CHILD = "trained"  # the name under which a layer carries its trainable update


class Trained(nn.Module):
    """The trainable update of one layer. Its parameters are the tensor fields of the update, in fp32."""

    def __init__(self, update: Any, layer: nn.Module):
        super().__init__()
        self.kind = type(update)
        self.gate: Callable[[Tensor], Tensor] | None = None  # dropout, see apply.dropout
        self.constants = {f.name: getattr(update, f.name) for f in fields(update) if f.name not in tensors(update)}
        for name, value in tensors(update).items():
            self.register_parameter(name, nn.Parameter(value.detach().clone().float()))
        self.handle = layer.register_forward_hook(add_residual)

    @property
    def update(self) -> Any:
        return self.kind(**self._parameters, **self.constants)


def add_residual(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    trained = getattr(layer, CHILD)
    update = trained.update
    residual = update.residual(inputs[0], layer) if trained.gate is None else update.gated(inputs[0], layer, trained.gate)
    return output + residual.to(output.dtype)


def inject(
    modules: Mapping[str, nn.Module],
    names: Sequence[str],
    rank: int | Mapping[str, int],
    alpha: float | Mapping[str, float],
    generator: torch.Generator | None = None,
) -> list[nn.Parameter]:
    """Fresh LoRA updates (A Gaussian, B zero) on the layers `names`; freezes all else in `modules`, returns A, B, A, B, …

    `rank` and `alpha` are one number for all layers or one per name. Draws follow the order of `names`.
    """
    layers = named_layers(modules)
    fresh = {}
    for name in names:
        if name not in layers:
            raise SdloraError(f"{name} is no Linear or Conv2d of {', '.join(modules)}; apply.select gives the names that are")
        r = rank[name] if isinstance(rank, Mapping) else rank
        if r < 1:
            raise SdloraError(f"the rank of {name} is {r}; it has to be at least 1")
        fresh[name] = lora.fresh(layers[name], r, alpha[name] if isinstance(alpha, Mapping) else alpha, generator)
    return attach(modules, Adapter(fresh))


def attach(modules: Mapping[str, nn.Module], adapter: Adapter) -> list[nn.Parameter]:
    """Make `adapter` trainable on `modules`, everything else frozen; its parameters, layer by layer."""
    layers = matched(modules, adapter)
    for name, layer in layers.items():
        if hasattr(layer, CHILD):
            raise SdloraError(f"{name} already carries a trainable update; take it off first (apply.eject)")
    for module in modules.values():
        module.requires_grad_(False)
    parameters = []
    for name, layer in layers.items():
        trained = Trained(adapter.layers[name], layer).to(next(layer.parameters()).device)
        setattr(layer, CHILD, trained)
        parameters += list(trained.parameters())
    return parameters


def carriers(modules: Mapping[str, nn.Module]) -> dict[str, Trained]:
    """Canonical name -> the trainable update on that layer."""
    return {name: getattr(layer, CHILD) for name, layer in named_layers(modules).items() if hasattr(layer, CHILD)}


def extract(modules: Mapping[str, nn.Module], metadata: Mapping[str, str] | None = None) -> Adapter:
    """The trainable updates as an adapter: a copy on the CPU that further training does not change."""
    result = {}
    for name, trained in carriers(modules).items():
        copies = {field: value.detach().cpu().clone() for field, value in trained.named_parameters()}
        result[name] = trained.kind(**copies, **trained.constants)
    return Adapter(result, dict(metadata or {}))


def eject(modules: Mapping[str, nn.Module]) -> None:
    """Take all trainable updates off; the base was never touched."""
    for layer in named_layers(modules).values():
        if hasattr(layer, CHILD):
            getattr(layer, CHILD).handle.remove()
            delattr(layer, CHILD)


@contextmanager
def suspended(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside the block the model is the base again; afterwards the same trainable updates, with the same parameters, are back."""
    carriers = [layer for layer in named_layers(modules).values() if hasattr(layer, CHILD)]
    for layer in carriers:
        getattr(layer, CHILD).handle.remove()
    try:
        yield
    finally:
        for layer in carriers:
            getattr(layer, CHILD).handle = layer.register_forward_hook(add_residual)
