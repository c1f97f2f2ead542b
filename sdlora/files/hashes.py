"""Hashes by which tools recognise an adapter whatever else its header says."""

import hashlib
from collections.abc import Mapping

import safetensors.torch
from torch import Tensor

from sdlora.files.container import serialised


def hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Kohya's two and ModelSpec's.

    sshs_model_hash: sha256 of all behind the header. sshs_legacy_hash: the first 8 digits of the sha256 of the bytes from
    0x100000 to 0x110000 of the file with the ss_… metadata only. modelspec.hash_sha256: the tensors in the order of their names.
    """
    plain = serialised(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    start = 8 + int.from_bytes(plain[:8], "little")
    ordered = hashlib.sha256()
    for key in sorted(tensors):
        ordered.update(safetensors.torch.save({"": tensors[key]})[-tensors[key].nbytes :] if tensors[key].nbytes else b"")
    return {
        "sshs_model_hash": hashlib.sha256(plain[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(plain[0x100000:0x110000]).hexdigest()[:8],
        "modelspec.hash_sha256": f"0x{ordered.hexdigest()}",
    }
