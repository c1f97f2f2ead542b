"""An adapter's layers and the model's, brought together: strictly, with an error that says what does not fit and why."""

from collections.abc import Mapping

from torch import Tensor, nn

from sdlora.adapter import Adapter
from sdlora.errors import SdloraError
from sdlora.layers import named_layers

EXAMPLES = 3


def matched(modules: Mapping[str, nn.Module], adapter: Adapter, source: str = "the adapter") -> dict[str, nn.Module]:
    """Name -> layer for every layer of `adapter`; SdloraError if one is missing or of another shape."""
    layers = named_layers(modules)
    missing = [name for name in adapter.layers if name not in layers]
    if missing:
        raise SdloraError(missing_message(source, missing, len(adapter.layers), modules))
    wrong = [
        f"{name}: {_size(update.shape)} in the adapter, {_size(weight_of(layers[name]).shape)} in the model"
        for name, update in adapter.layers.items()
        if tuple(update.shape) != tuple(weight_of(layers[name]).shape)
    ]
    if wrong:
        raise SdloraError(
            f"{len(wrong)} of {len(adapter.layers)} layers of {source} have another shape than the model's:\n{_listed(wrong)}\n"
            "The adapter was trained on a base model of another size. Choose the base it was trained on (--base)"
        )
    return {name: layers[name] for name in adapter.layers}


def weight_of(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def missing_message(source: str, missing: list[str], total: int, modules: Mapping[str, nn.Module]) -> str:
    models = " or ".join(type(module).__name__ for module in modules.values())
    return (
        f"{len(missing)} of {total} layers of {source} do not exist in {models}:\n{_listed(missing)}\n"
        f"{_reason(missing, total)}. `sdlora adapter describe FILE` shows what the file is made for"
    )


def _reason(missing: list[str], total: int) -> str:
    """Why layers are likely to be missing, judged from their names."""
    text = " ".join(missing)
    if any(word in text for word in ("lora_te2_", "text_encoder_2.", "input_blocks_", "output_blocks_")):
        return "The adapter was trained on SDXL, this model is not an SDXL"
    if any(word in text for word in ("single_transformer_blocks", "double_blocks", "joint_blocks", "transformer.")):
        return "The adapter was trained on a diffusion transformer (Flux, SD 3, …), this model has a U-Net"
    if len(missing) == total:
        return "No layer fits: the adapter was trained on another model family"
    return "The adapter was probably trained on another base model, with more layers: choose that one (--base), or pass allow_missing=True"


def _listed(lines: list[str]) -> str:
    shown = [f"    {line}" for line in lines[:EXAMPLES]]
    return "\n".join([*shown, "    …"] if len(lines) > EXAMPLES else shown)


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(str(n) for n in shape)
