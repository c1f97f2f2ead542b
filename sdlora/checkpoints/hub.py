"""A base model by its Hugging Face id, from the local cache alone: nothing is ever downloaded."""

from pathlib import Path

from sdlora.config import HUB_ID
from sdlora.errors import SdloraError


def is_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None


def folder(name: str) -> Path:
    """The folder of the model with the id `name`, owner/model, in Hugging Face's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "model_index.json")
    if isinstance(found, str):
        return Path(found).parent
    raise SdloraError(
        f"{name} is neither a file or folder here nor in the local Hugging Face cache, and sdlora downloads nothing; "
        f"fetch it once with: hf download {name}"
    )
