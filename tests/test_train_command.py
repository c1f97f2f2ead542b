"""sdlora train on the command line: planned, fitted and measured without a trace, and refused in one line."""

import folders
import pytest

from sdlora.commands import train as command
from sdlora.errors import SdloraError


@pytest.fixture
def pictures(tmp_path):
    captions = [f"{words}, sks style" for words in ("a fox", "the moon", "two cups", "a hat")]
    return folders.pictures(tmp_path / "ink", ((32, 64), *((32, 32),) * 3), captions)


@pytest.fixture
def call(command_line):
    return command_line(command, "train")


def test_a_dry_run_tells_buckets_steps_and_memory_and_touches_nothing(call, pictures, tiny_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = sorted(tmp_path.rglob("*"))
    said = call(pictures, f"base={tiny_base}", "resolution=32", "precision=fp32", "validation.fraction=0.2", "--dry-run", "--fit", "2GB")
    expected = "32 × 32: ", "trigger sks style", "500 (", "2 batches a step", "held out", "memory   about", "runs/ink"
    for words in (*expected, "fits 2.00 GiB as it is"):
        assert words in said, said
    assert sorted(tmp_path.rglob("*")) == there


def test_what_fits_is_what_is_planned(call, pictures, tiny_base, tmp_path):
    words = pictures, f"base={tiny_base}", f"output={tmp_path / 'run'}", "resolution=512", "precision=fp32", "batch_size=8"
    said = call(*words, "--dry-run", "--fit", "1.2GB")
    assert "to fit 1.20 GiB: " in said and "batch_size 8 → " in said
    size = int(said.split("batch_size 8 → ")[1].split(",")[0].split(";")[0])
    assert f"a step still sees 8 pictures, {size} at a time" in said and f"{size} images, {8 // size} batches a step" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--measure"], "--measure belongs to --dry-run"),
        (["--fit", "lots"], "is no size of a memory; write it as 8GB"),
        (["--from", "nothing.safetensors"], "nothing.safetensors does not exist"),
        (["batch_size=0"], "batch_size is 0; it should be a whole number, and 1 at least"),
        (["rnak=3"], "unknown setting rnak in 'rnak=3'; did you mean rank?"),
    ],
)
def test_a_wrong_call_is_refused(call, pictures, tiny_base, words, message):
    with pytest.raises(SdloraError, match=message):
        call(pictures, f"base={tiny_base}", *words)
