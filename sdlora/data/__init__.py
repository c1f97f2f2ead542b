"""From an image folder to tensors: found, prepared, encoded once."""

from sdlora.data.cache import Cache
from sdlora.data.encode import Encoded, encode
from sdlora.data.folder import Example, fingerprint, scan

__all__ = ["Cache", "Encoded", "Example", "encode", "fingerprint", "scan"]
