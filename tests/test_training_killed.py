"""A training that is killed ends, started again, in the same bytes: within any of its writes, and at any moment of its process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import folders
import pytest
from trainings import resumable, sha

from sdlora.training import metrics, validation

ROOT = Path(__file__).parents[1]
HANGS = 600  # seconds that no process takes, however busy the machine is


@pytest.fixture
def held(tmp_path):
    return folders.pictures(tmp_path / "held", folders.SMALL[:2], "another picture {}, sks style", seed=1)


@pytest.fixture
def train(pictures, tmp_path, components):
    """A function (name of the run folder, changes) -> the adapter's path."""
    return resumable(pictures, tmp_path, components)


def losses_of(folder: Path) -> list[tuple[int, float]]:
    return [(line["number"], line["loss"]) for line in metrics.read(folder / "metrics.jsonl")]


class Kill(BaseException):
    """Passes through everything, as kill −9 does."""


class Killer:
    """Stops the process, so to speak, in the middle of its k-th write: of a file that is to be moved into place, or of a line."""

    def __init__(self, monkeypatch):
        self.left = self.writes = 0
        real_replace, real_append = os.replace, {m: m.append for m in (metrics, validation)}

        def replace(source, target):
            self.count()
            real_replace(source, target)

        monkeypatch.setattr(os, "replace", replace)
        for module, real in real_append.items():

            def append(path, what, real=real):
                before = path.read_bytes() if path.exists() else b""
                real(path, what)
                try:
                    self.count()
                except Kill:
                    whole = path.read_bytes()
                    path.write_bytes(whole[: (len(before) + len(whole)) // 2])  # half a line
                    raise

            monkeypatch.setattr(module, "append", append)

    def count(self) -> None:
        self.writes += 1
        if self.writes == self.left:
            raise Kill


@pytest.mark.slow
def test_a_run_killed_within_any_of_its_writes_ends_in_the_same_bytes(train, tmp_path, monkeypatch, held):
    settings = {"steps": 2, "save_every": 1, "validation": {"images": held, "every": 1, "timesteps": 1}, "keep_states": 1}
    settings |= {"batch_size": 1, "flip": False}
    names = "adapter.safetensors", "step-000001.safetensors", "best.safetensors", "validation.jsonl", "dataset.json"
    killer = Killer(monkeypatch)

    def go(name: str) -> None:  # with a cache of its own: what one run has encoded, no other finds, and all make as many writes
        train(name, **settings, cache=str(tmp_path / "caches" / name))

    go("whole")
    whole = [sha(tmp_path / "whole" / name) for name in names]
    total = killer.writes
    assert total > 20
    for number in range(1, total + 1):
        killer.writes, killer.left = 0, number
        with pytest.raises(Kill):
            go(f"run-{number}")
        assert killer.writes == number
        killer.left = 0
        go(f"run-{number}")
        assert [sha(tmp_path / f"run-{number}" / name) for name in names] == whole, number
        assert losses_of(tmp_path / "whole") == losses_of(tmp_path / f"run-{number}")


def test_what_a_killed_process_had_half_written_is_cleared_away(train, tmp_path):
    litter = [tmp_path / "run" / "states" / ".step-000002-abc.tmp.pt", tmp_path / "run" / ".config-x1.tmp.toml"]
    for path in litter:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    train("run")
    assert not any(path.exists() for path in litter)


def command(base: Path, pictures: Path, output: Path) -> list[str]:
    settings = {"images": pictures, "output": output, "base": base, "steps": 12, "batch_size": 2, "rank": 2, "resolution": 32}
    more = {"save_every": 3, "samples.steps": 1, "samples.count": 1, "seed": 3}
    return [sys.executable, str(ROOT / "train" / "lora.py"), *(f"{key}={value}" for key, value in (settings | more).items())]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    return folders.pictures(tmp_path_factory.mktemp("drawings"))


@pytest.fixture(scope="module")
def whole(tiny_base, drawings, tmp_path_factory):
    """The folder of a training by the command that nobody stopped."""
    output = tmp_path_factory.mktemp("trained") / "whole"
    subprocess.run(command(tiny_base, drawings, output), env=environment(), check=True, capture_output=True)
    return output


@pytest.mark.slow
@pytest.mark.parametrize(("how", "steps"), [(signal.SIGKILL, (1, 5, 10)), (signal.SIGINT, (4, 8))])
def test_a_process_stopped_at_any_moment_ends_in_the_same_bytes(tiny_base, drawings, whole, tmp_path, how, steps):
    """Wherever it is when the signal comes: some time after it has told of a step."""
    broken = tmp_path / "broken"
    words = command(tiny_base, drawings, broken)
    for step in steps:
        process = subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True)
        wait_for(process, broken / "metrics.jsonl", step)
        process.send_signal(how)
        _, errors = process.communicate(timeout=HANGS)
        assert process.returncode in (-how, 0, 130), errors  # 0 and −SIGINT: the signal came when all was done already
        assert "Traceback" not in errors
    last = subprocess.run(words, env=environment(), check=True, capture_output=True, text=True)
    assert sha(broken / "adapter.safetensors") == sha(whole / "adapter.safetensors")
    assert sorted(p.name for p in (broken / "samples").iterdir()) == sorted(p.name for p in (whole / "samples").iterdir())
    again = subprocess.run(words, env=environment(), check=True, capture_output=True, text=True)
    assert "finished already" in again.stderr and str(broken / "adapter.safetensors") in last.stdout + again.stdout
    numbers = [json.loads(line)["number"] for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert numbers == list(range(1, 13))


def wait_for(process: subprocess.Popen, path: Path, lines: int) -> None:
    """Until the process, since it began, has written to `path` and there are so many lines; or until it is gone."""
    start = path.stat().st_mtime_ns if path.exists() else 0
    deadline = time.monotonic() + HANGS
    while process.poll() is None and not (path.exists() and path.stat().st_mtime_ns > start and path.read_bytes().count(b"\n") >= lines):
        assert time.monotonic() < deadline, f"no step {lines} in {HANGS} seconds"
        time.sleep(0.01)


@pytest.mark.slow
def test_the_command_refuses_in_one_line_and_with_exit_code_2(tiny_base, pictures, tmp_path):
    arguments = [*command(tiny_base, pictures, tmp_path / "run"), "rnak=4"]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.strip() == "error: unknown setting rnak in 'rnak=4'; did you mean rank?"
    assert not (tmp_path / "run").exists()
