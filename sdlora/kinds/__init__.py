"""The kinds of adapters: one file, one frozen dataclass each."""

from sdlora.kinds.lora import Lora

KINDS = {"lora": Lora}

__all__ = ["KINDS", "Lora"]
