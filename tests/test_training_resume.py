"""An interrupted run, however it was interrupted, ends in the same bytes as one that was never stopped."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import folders
import pytest

from sdlora import training
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig, intervals, metrics, run, saving, validation
from sdlora.training.layout import Layout

ROOT = Path(__file__).parents[1]


@pytest.fixture
def held(tmp_path):
    return folders.pictures(tmp_path / "held", folders.SMALL[:2], "another picture {}, sks style", seed=1)


@pytest.fixture
def train(pictures, tmp_path, components):
    """A function (name of the run folder, changes) -> the adapter's path."""

    def go(name: str, draw=None, **changes) -> Path:
        usual = {"steps": 7, "batch_size": 2, "rank": 2, "resolution": 32, "precision": "fp32", "save_every": 2, "learning_rate": 1e-2}
        usual |= {"caption_dropout": 0.3, "flip": True, "images": pictures, "output": tmp_path / name}
        return training.train(TrainConfig(**usual | changes), draw, progress=False, components=components)

    return go


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Crash(Exception):
    pass


@pytest.mark.parametrize("targets", [("attention",), ("attention", "text_attention")])
def test_a_run_that_crashed_again_and_again_ends_like_one_that_did_not(train, monkeypatch, targets, tmp_path):
    whole = train("whole", targets=targets)
    real, crashes = metrics.append, iter((1, 3, 4, 6, 7))
    due = [next(crashes)]

    def append(path, step):
        real(path, step)
        if step.number == due[0]:
            due[0] = next(crashes, 0)
            raise Crash

    monkeypatch.setattr(metrics, "append", append)
    for _ in range(5):
        with pytest.raises(Crash):
            train("broken", targets=targets)
    assert sha(train("broken", targets=targets)) == sha(whole)
    assert [line["number"] for line in metrics.read(tmp_path / "broken" / "metrics.jsonl")] == list(range(1, 8))
    losses = [[line["loss"] for line in metrics.read(tmp_path / name / "metrics.jsonl")] for name in ("whole", "broken")]
    assert losses[0] == losses[1]


def test_a_sample_that_was_not_finished_is_drawn_again(train, tmp_path):
    def failing(path, step):
        raise Crash

    def draw(path, step):
        place = Layout(tmp_path / "run").sample(step)
        place.parent.mkdir(exist_ok=True)
        place.write_text(path.name)  # again for one that is there: the callback looks for itself

    with pytest.raises(Crash):
        train("run", failing)
    train("run", draw)
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == [f"step-{n:06d}-1.png" for n in (2, 4, 6, 7)]


def test_ctrl_c_saves_the_state_and_the_same_command_goes_on(train, monkeypatch, tmp_path):
    whole = train("whole")
    real = metrics.append

    def append(path, step):
        real(path, step)
        if step.number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(metrics, "append", append)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 7"):
        train("stopped")
    assert signal.getsignal(signal.SIGINT) is before
    assert run.read_state(Layout(tmp_path / "stopped").states[-1])["step"] == 3
    monkeypatch.undo()
    assert sha(train("stopped")) == sha(whole)


def test_a_finished_run_is_left_as_it_is_and_its_file_is_made_again_if_lost(train):
    path = train("run")
    before = {p: p.stat().st_mtime_ns for p in path.parent.iterdir() if p.suffix in (".safetensors", ".pt")}
    train("run")
    assert before == {p: p.stat().st_mtime_ns for p in before}
    first = sha(path)
    path.unlink()
    assert sha(train("run")) == first


def test_a_folder_with_another_run_is_refused_with_what_differs(train):
    train("run")
    with pytest.raises(SdloraError) as caught:
        train("run", rank=4, learning_rate=1e-3)
    message = str(caught.value)
    expected = "rank 2 there and 4 now", "alpha 2.0 there and 4.0 now", "learning_rate 0.01 there and 0.001"
    assert all(words in message for words in expected), message
    with pytest.raises(SdloraError, match="steps 7 there and 9 now.*schedule=constant"):
        train("run", steps=9)
    train("run", save_every=3)  # has no part in the adapter


def test_other_images_in_an_old_run_are_refused(train, pictures, tmp_path):
    train("run")
    place = Layout(tmp_path / "run")
    said = [path.read_bytes() for path in (place.config, place.manifest, place.environment)]
    (pictures / "1.txt").write_text("a changed caption")
    with pytest.raises(SdloraError, match="the images changed since the run in .* began"):
        train("run", save_every=3)
    assert [path.read_bytes() for path in (place.config, place.manifest, place.environment)] == said, "a refused start changes nothing"


def test_under_a_constant_schedule_a_run_may_become_longer(train):
    whole = train("whole", schedule="constant", steps=6)
    train("longer", schedule="constant", steps=3)
    longer = train("longer", schedule="constant", steps=6)
    from sdlora import files

    one, other = (files.read(path).layers for path in (whole, longer))
    assert all((one[name].a == other[name].a).all() and (one[name].b == other[name].b).all() for name in one)
    assert sha(whole) == sha(longer)
    with pytest.raises(SdloraError, match="steps 6 there and 4 now"):
        train("longer", schedule="constant", steps=4)


@pytest.mark.parametrize("harm", ["cut", "changed", "empty"])
def test_a_damaged_newest_state_falls_back_to_the_one_before_and_ends_in_the_same_bytes(train, tmp_path, capsys, harm):
    path = train("run")
    first, place = sha(path), Layout(tmp_path / "run")
    newest = place.states[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes({"cut": data[: len(data) // 2], "changed": data, "empty": b""}[harm])
    path.unlink()
    assert saving.step_of(saving.newest(place)) == 6
    assert sha(train("run")) == first


def test_when_every_state_is_damaged_it_is_said(train, tmp_path):
    train("run")
    for state in Layout(tmp_path / "run").states:
        state.write_bytes(b"nothing")
    with pytest.raises(SdloraError, match="every state in .*states is damaged; delete .* to train anew"):
        train("run")


def test_the_newest_states_and_checkpoints_stay(train, tmp_path):
    train("run", save_every=1, keep_states=2, keep_checkpoints=3)
    place = Layout(tmp_path / "run")
    assert [saving.step_of(p) for p in place.states] == [6, 7]
    assert [saving.step_of(p) for p in place.checkpoints] == [4, 5, 6] and place.adapter.exists()
    train("all", save_every=1, keep_states=0)
    assert [len(Layout(tmp_path / "all").states), len(Layout(tmp_path / "all").checkpoints)] == [7, 6]


def test_a_damaged_state_of_a_later_step_takes_no_place_of_those_that_stay(tmp_path):
    place = Layout(tmp_path)
    place.state(0).parent.mkdir()
    for step in (6, 8):
        place.state(step).write_bytes(b"")
    run = SimpleNamespace(step=7, config=SimpleNamespace(keep_states=1), save_state=lambda path: path.write_bytes(b""))
    saving.state(run, place)
    assert place.states == [place.state(7), place.state(8)]


def test_an_epoch_is_a_measure_of_time(train, tmp_path):
    train("run", save_every="1 epoch")  # three pictures, two a step
    assert [saving.step_of(p) for p in Layout(tmp_path / "run").checkpoints] == [2, 4, 6]
    assert [intervals.steps(text, 10, 4) for text in (7, 0, "1 epoch", "2 epochs", "3 epochs")] == [7, 0, 3, 5, 8]
    with pytest.raises(ValueError, match='save_every is .1 year.; write a number of steps, or "1 epoch"'):
        train("other", save_every="1 year")


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


@pytest.mark.slow
@pytest.mark.parametrize(("how", "times"), [(signal.SIGKILL, 3), (signal.SIGINT, 2)])
def test_a_process_stopped_at_random_moments_ends_in_the_same_bytes(tiny_base, pictures, tmp_path, how, times):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(tiny_base, pictures, whole), env=environment(), check=True, capture_output=True)
    chance = random.Random(int(how))
    for _ in range(times):
        process = subprocess.Popen(command(tiny_base, pictures, broken), env=environment(), stderr=subprocess.PIPE, text=True)
        wait_for_a_line(process, broken / "metrics.jsonl", chance.uniform(0, 1.0))
        process.send_signal(how)
        _, errors = process.communicate(timeout=120)
        assert process.returncode in (-how, 0, 130), errors  # 0 and −SIGINT: the signal came when all was done already
        assert "Traceback" not in errors
    last = subprocess.run(command(tiny_base, pictures, broken), env=environment(), check=True, capture_output=True, text=True)
    assert sha(broken / "adapter.safetensors") == sha(whole / "adapter.safetensors")
    assert sorted(p.name for p in (broken / "samples").iterdir()) == sorted(p.name for p in (whole / "samples").iterdir())
    again = subprocess.run(command(tiny_base, pictures, broken), env=environment(), check=True, capture_output=True, text=True)
    assert "finished already" in again.stderr and str(broken / "adapter.safetensors") in last.stdout + again.stdout
    numbers = [json.loads(line)["number"] for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert numbers == list(range(1, 13))


def wait_for_a_line(process: subprocess.Popen, path: Path, seconds: float) -> None:
    """Until the process has written to `path` after it began, and some more time; or until it is gone."""
    start = path.stat().st_mtime_ns if path.exists() else 0
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not (path.exists() and path.stat().st_mtime_ns > start):
        time.sleep(0.01)
    time.sleep(seconds)


@pytest.mark.slow
def test_the_command_refuses_in_one_line_and_with_exit_code_2(tiny_base, pictures, tmp_path):
    arguments = [*command(tiny_base, pictures, tmp_path / "run"), "rnak=4"]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.strip() == "error: unknown setting rnak in 'rnak=4'; did you mean rank?"
    assert not (tmp_path / "run").exists()
