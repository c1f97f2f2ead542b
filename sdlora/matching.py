"""An adapter's layers and the model's, brought together: strictly, with an error that says what does not fit and why."""

from collections.abc import Mapping

from torch import Tensor, nn

from sdlora.adapter import Adapter
from sdlora.errors import SdloraError
from sdlora.layers import named_layers
from sdlora.origin import family_of, title

EXAMPLES = 3


def matched(
    modules: Mapping[str, nn.Module], adapter: Adapter, source: str = "the adapter", layers: Mapping[str, nn.Module] | None = None
) -> dict[str, nn.Module]:
    """Name -> layer for every layer of `adapter`; SdloraError if one is missing or of another shape.

    layers  those of `modules` (`named_layers`), for who has them already
    """
    layers = named_layers(modules) if layers is None else layers
    missing = [name for name in adapter.layers if name not in layers]
    if missing:
        raise SdloraError(missing_message(source, missing, adapter, modules))
    wrong = [
        f"{name}: {_size(update.shape)} in the adapter, {_size(weight_of(layers[name]).shape)} in the model"
        for name, update in adapter.layers.items()
        if tuple(update.shape) != tuple(weight_of(layers[name]).shape)
    ]
    if wrong:
        raise SdloraError(
            f"{_other_family(source, adapter, modules)}"
            f"{len(wrong)} of {len(adapter.layers)} layers of {source} have another shape than the model's ({_listed(wrong)}); "
            "the adapter was trained on a base model of another size. Choose the base it was trained on (--base)"
        )
    return {name: layers[name] for name in adapter.layers}


def weight_of(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def missing_message(source: str, missing: list[str], adapter: Adapter, modules: Mapping[str, nn.Module]) -> str:
    models = " or ".join(type(module).__name__ for module in modules.values())
    return (
        f"{_other_family(source, adapter, modules)}"
        f"{len(missing)} of {len(adapter.layers)} layers of {source} do not exist in {models} ({_listed(missing)}); "
        f"{_reason(missing, len(adapter.layers))}. `sdlora adapter describe FILE` shows what the file is made for"
    )


def base_family(modules: Mapping[str, nn.Module]) -> str | None:
    """The family of a model, by its layers; None where nothing tells, as of the small built-in base."""
    return family_of({name: tuple(weight_of(layer).shape) for name, layer in named_layers(modules).items()})


def adapter_family(adapter: Adapter) -> str | None:
    return family_of({name: tuple(update.shape) for name, update in adapter.layers.items()}, adapter.metadata)


def _other_family(source: str, adapter: Adapter, modules: Mapping[str, nn.Module]) -> str:
    """The beginning of the message where the two are of different families."""
    theirs, ours = adapter_family(adapter), base_family(modules)
    small = ours is None and theirs == "sd1"  # the built-in base: SD 1.x by name, and by none of its layers
    if theirs is None or theirs == ours or small:
        return ""
    this = f"this base model is {title(ours)}" if ours else f"this base model is not {title(theirs)}"
    return f"{source} is an adapter for {title(theirs)}, {this}: "


def _reason(missing: list[str], total: int) -> str:
    if len(missing) == total:
        return "no layer fits: the adapter was trained on another model family"
    return (
        "the adapter was probably trained on another base model, with more layers: choose that one "
        "(--base; in Python allow_missing=True leaves them out)"
    )


def _listed(lines: list[str]) -> str:
    return "; ".join([*lines[:EXAMPLES], "…"] if len(lines) > EXAMPLES else lines)


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(str(n) for n in shape)
