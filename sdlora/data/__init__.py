"""From an image folder to tensors: found, framed, encoded once."""

from sdlora.data.cache import Cache
from sdlora.data.encode import Encoded, encode
from sdlora.data.folder import Example, Found, fingerprint, gather, scan
from sdlora.data.settings import DataSettings

__all__ = ["Cache", "DataSettings", "Encoded", "Example", "Found", "encode", "fingerprint", "gather", "scan"]
