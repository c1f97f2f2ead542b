"""What a file is by its first bytes, so that a web page or a pointer under a model's name is called what it is."""

import struct
from pathlib import Path

from sdlora.errors import SdloraError

SAFETENSORS, PICKLE = "safetensors", "pickle"
LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
OTHERS = (  # how a file begins, and what is to be said of it
    (b"version https://git-lfs", "is a pointer of Git LFS and not the file itself; fetch it with: git lfs pull"),
    (b"<", "is a web page and not a model; download the file itself"),
    (b"GGUF", "is a GGUF file, whose weights are quantised; sdlora reads safetensors"),
    (b"{", "is JSON and holds no tensors; give the file with the weights"),
    (b"\x89HDF", "is an HDF5 file (Keras, TensorFlow); sdlora reads safetensors"),
    (b"Rar!", "is an archive; unpack it first"),
    (b"7z", "is an archive; unpack it first"),
    (b"\x1f\x8b", "is an archive; unpack it first"),
)


def kind(path: Path) -> str:
    """SAFETENSORS, PICKLE, or the end of a message about a file that is neither."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(32)
    except OSError as error:
        raise SdloraError(f"cannot read {path}: {error.strerror}; give a .safetensors file, or a checkpoint of PyTorch's") from error
    if not start:
        return "is empty (0 bytes); fetch it again"
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return PICKLE
    length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else -1
    if start[8:9] == b"{" and 2 <= length <= min(LONGEST_HEADER, size - 8):
        return SAFETENSORS
    if start[8:9] == b"{":
        return f"({size:,} bytes) is cut off, or its header's length is wrong; fetch it again"
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t")
    known = next((what for sign, what in OTHERS if text.startswith(sign)), None)
    return known or f"({size:,} bytes) is cut off or not a safetensors file; fetch it again"
