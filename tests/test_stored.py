"""Laws of tensors in files: what is read is what was written, and a damaged or dangerous file is one clear line."""

import json
import os
import pickle
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdlora import models, stored
from sdlora.checkpoints import unet
from sdlora.errors import SdloraError
from sdlora.families import EPSILON
from sdlora.stored import Stored

FIRST = f"{unet.PREFIX}0"


def rewritten(**changes):
    """A function bytes -> the same file, whose header's entry of the first tensor has `changes`."""

    def damage(data: bytes) -> bytes:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        header[FIRST] |= changes
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return damage


def headed(header: object):
    text = json.dumps(header).encode()
    return lambda data: struct.pack("<Q", len(text)) + text + data


CUT, ENTRY = "is cut off, or its header's length is wrong", "the header's entry of .*0 is damaged or of an unknown type"
DAMAGED = [
    (lambda data: data[: len(data) // 2], "is cut off: .* ends at byte"),
    (lambda data: data[:5], "is cut off or not a safetensors file"),
    (lambda data: data[:50], CUT),
    (lambda data: b"", "is empty"),
    (lambda data: struct.pack("<Q", 10**9) + data[8:], CUT),
    (lambda data: struct.pack("<Q", 2**64 - 1) + data[8:], CUT),
    (lambda data: struct.pack("<Q", 0) + data[8:], CUT),
    (lambda data: struct.pack("<Q", struct.unpack("<Q", data[:8])[0] - 3) + data[8:], "is damaged: its tensors end at byte"),
    (lambda data: data + b"more", "is damaged: its tensors end at byte"),
    (lambda data: data[:8] + b"{{" + data[10:], "its header is not JSON"),
    (lambda data: data[:8] + b"!" + data[9:], "is cut off or not a safetensors file"),
    (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a pointer of Git LFS"),
    (lambda data: b"<!DOCTYPE html><html></html>" * 9, "is a web page"),
    (lambda data: b"GGUF" + bytes(99), "is a GGUF file"),
    (lambda data: b'{"error": 404}', "is JSON and holds no tensors"),
    (lambda data: pickle.dumps([1]), "is a pickle .*, whatever its name says"),
    (headed({"__metadata__": [1]}), "__metadata__ of its header is no table"),
    (headed({FIRST: None}), ENTRY),
    (rewritten(shape="x"), ENTRY),
    (rewritten(shape=[100.0]), ENTRY),
    (rewritten(shape=[-100]), ENTRY),
    (rewritten(data_offsets=[0.0, 400.0]), ENTRY),
    (rewritten(data_offsets=["a", "b"]), ENTRY),
    (rewritten(data_offsets=[-400, 0]), ENTRY),
    (rewritten(dtype="F4"), ENTRY),
    (rewritten(shape=[99]), "has 400 bytes, and its shape .99. does not"),
    (rewritten(data_offsets=[200, 600]), "is damaged: by its header .* begins at byte"),
]


@pytest.mark.parametrize("damage, message", DAMAGED)
def test_a_damaged_file_is_one_clear_line(tmp_path, damage, message):
    save_file({f"{unet.PREFIX}{i}": torch.randn(100) for i in range(9)}, tmp_path / "good.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(damage((tmp_path / "good.safetensors").read_bytes()))
    with pytest.raises(SdloraError, match=message) as refusal:
        stored.contents(tmp_path / "bad.safetensors")
    assert "\n" not in str(refusal.value)


def test_every_place_where_a_file_can_be_cut_off_is_noticed(tmp_path):
    save_file({f"{i}": torch.randn(3) for i in range(3)}, tmp_path / "good.safetensors")
    whole = (tmp_path / "good.safetensors").read_bytes()
    assert len(stored.contents(tmp_path / "good.safetensors").tensors) == 3
    for length in range(len(whole)):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(SdloraError, match="is cut off|is empty"):
            stored.contents(tmp_path / "cut.safetensors")


def test_the_content_says_what_a_file_is_and_a_pickle_has_to_be_called_one(tmp_path):
    tensors = {"a": torch.randn(2, 3)}
    for name in ("a.safetensors", "b.SAFETENSORS", "c", "d.ckpt"):
        save_file(tensors, tmp_path / name)
        assert torch.equal(stored.contents(tmp_path / name).tensors["a"].read(), tensors["a"])
    for name in ("e.ckpt", "f.pt", "g.bin", "h.pth"):
        for zipped in (True, False):
            torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=zipped)
            assert torch.equal(stored.contents(tmp_path / name).tensors["a"].read(), tensors["a"])
    (tmp_path / "i.safetensors").write_bytes((tmp_path / "e.ckpt").read_bytes())
    with pytest.raises(SdloraError, match="is a pickle"):
        stored.contents(tmp_path / "i.safetensors")
    with pytest.raises(SdloraError, match="cannot read .*: Is a directory"):
        stored.contents(tmp_path)


PICKLED = [
    ([1, 2], "holds a list, not named tensors"),
    ({"state_dict": [1]}, "holds a list, not named tensors"),
    ({"state_dict": {"a": {"b": torch.zeros(1)}}}, "holds no tensors by name"),
    ({"string_to_param": {"*": torch.zeros(2, 768)}, "name": "x"}, "is a textual inversion"),
    ({768: [{"linear.0.weight": torch.zeros(2)}], "step": 1}, "is a hypernetwork"),
    ({"a": torch.zeros(3).to_sparse()}, "a is no plain tensor but float32, sparse_coo"),
    ({"a": torch.zeros(3, dtype=torch.complex64)}, "a is no plain tensor but complex64"),
]


@pytest.mark.parametrize("thing, message", PICKLED)
def test_a_pickle_of_other_things_is_called_what_it_is(tmp_path, thing, message):
    torch.save(thing, tmp_path / "x.pt")
    with pytest.raises(SdloraError, match=message):
        stored.contents(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_no_program_in_a_pickle_runs(tmp_path, zipped):
    """Whether it stands beside the tensors, in their place, or is the whole file."""
    mark = tmp_path / "ran"
    for thing in ({"state_dict": {"a": torch.zeros(1)}, "x": Program(mark)}, {"state_dict": Program(mark)}, Program(mark)):
        torch.save(thing, tmp_path / "evil.ckpt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(SdloraError, match="holds more than tensors"):
            stored.contents(tmp_path / "evil.ckpt")
        (tmp_path / "evil.ckpt").write_bytes(pickle.dumps(thing))
        with pytest.raises(SdloraError, match="holds more than tensors|is damaged"):
            stored.contents(tmp_path / "evil.ckpt")
    assert not mark.exists()


def test_a_ckpt_of_a_trainer_is_read_with_its_step(made, tmp_path):
    tensors = load_file(made("sd2")[1])
    torch.save({"state_dict": tensors, "global_step": 875000, "epoch": 1}, tmp_path / "base.ckpt")
    assert models.opened(tmp_path / "base.ckpt").prediction.kind == EPSILON
    read = stored.contents(tmp_path / "base.ckpt").tensors
    assert read.keys() == tensors.keys() and all(torch.equal(read[name].read(), tensor) for name, tensor in tensors.items())
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "base.ckpt").read_bytes()[:10000])
    with pytest.raises(SdloraError, match="damaged"):
        models.opened(tmp_path / "cut.ckpt")


class Program:
    """Unpickled, it makes the file `mark`."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_written_file_is_safetensors_own_layout(tmp_path):
    tensors = {"b": torch.arange(3), "a": torch.randn(2, 3).half(), "empty": torch.zeros(0), "one": torch.tensor(2.0)}
    kept = {name: Stored(tuple(t.shape), t.dtype, lambda t=t: t) for name, t in tensors.items()}
    stored.write(tmp_path / "x.safetensors", kept, {"k": "é"})
    back = load_file(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"k": "é"}
    read = stored.contents(tmp_path / "x.safetensors")
    assert all(torch.equal(read.tensors[name].read(), tensors[name]) for name in tensors) and read.metadata == {"k": "é"}
