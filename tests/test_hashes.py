"""Laws of a weight file's identity: its sha256, remembered until it changes."""

import json
import os

import pytest

from sdlora.checkpoints import hashes


def test_a_files_hash_is_its_sha256_and_remembered_on_disk_until_it_changes(tmp_path, monkeypatch):
    import hashlib

    monkeypatch.setenv("SDLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "WORTH", 0)
    hashes._remembered.cache_clear()
    file = tmp_path / "file"
    file.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert hashes.sha256([file]) == digest and hashes.short(digest) == digest[:10]
    written = tmp_path / "cache" / "hashes.json"
    assert list(json.loads(written.read_text()).values()) == [digest]
    hashes._remembered.cache_clear()
    monkeypatch.setattr(hashes, "_digest", lambda stamps: pytest.fail("hashed again"))
    assert hashes.sha256([file]) == digest
    monkeypatch.undo()
    monkeypatch.setenv("SDLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "WORTH", 0)
    file.write_bytes(b"changed")
    os.utime(file, ns=(1, 1))
    assert hashes.sha256([file]) == hashlib.sha256(b"changed").hexdigest()
    written.write_text("{ not json")
    hashes._remembered.cache_clear()
    assert hashes.sha256([file]) == hashlib.sha256(b"changed").hexdigest()
