"""From which tensor of a memory-mapped file a layer's weight was read: it can be read again, and need not be kept twice."""

from collections.abc import Mapping
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from sdlora.checkpoints.clip import plain
from sdlora.layers import adaptable
from sdlora.stored import Stored

_ORIGINS: WeakKeyDictionary[nn.Module, Stored] = WeakKeyDictionary()


def remember(module: nn.Module, weights: Mapping[str, Stored]) -> None:
    """`weights` of the component `module`, by plain names."""
    for path, layer in adaptable(module).items():
        stored = weights.get(plain(f"{path}.weight"))
        if stored is not None and stored.mapped:
            _ORIGINS[layer] = stored


def origin(layer: nn.Module) -> Stored | None:
    return _ORIGINS.get(layer)


def reread(stored: Stored, like: Tensor) -> Tensor:
    """The tensor on the device and in the precision of `like`. It may be a view into the file: `stored.release()` when done."""
    return stored.read().to(like.device, like.dtype)
