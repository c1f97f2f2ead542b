"""sdlora: train, apply and compare LoRA adapters for Stable Diffusion."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> (module, name there); imported at first use, so that `import sdlora` and `sdlora --help` are instant
_PUBLIC = {
    "SdloraError": ("sdlora.errors", "SdloraError"),
    "Adapter": ("sdlora.adapter", "Adapter"),
    "Components": ("sdlora.models", "Components"),
    "load_base": ("sdlora.models", "load"),
    "load_adapter": ("sdlora.files", "load"),
    "Library": ("sdlora.files", "Library"),
    "save_adapter": ("sdlora.files", "save"),
    "stacked": ("sdlora.apply", "stacked"),
    "fused": ("sdlora.apply", "fused"),
    "Request": ("sdlora.generation", "Request"),
    "generate": ("sdlora.generation", "generate"),
    "TrainConfig": ("sdlora.training", "TrainConfig"),
    "train": ("sdlora.training", "train"),
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sdlora' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
