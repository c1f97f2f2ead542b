"""An interrupted run, however it was interrupted, ends in the same bytes as one that was never stopped."""

import os
import signal
from types import SimpleNamespace

import pytest
from trainings import Crash, crashing, resumable, sha

from sdlora.errors import SdloraError
from sdlora.training import intervals, metrics, run, saving
from sdlora.training.layout import Layout


@pytest.fixture
def train(pictures, tmp_path, components):
    """A function (name of the run folder, changes) -> the adapter's path."""
    return resumable(pictures, tmp_path, components)


@pytest.mark.parametrize("targets", [("attention",), ("attention", "text_attention")])
def test_a_run_that_crashed_again_and_again_ends_like_one_that_did_not(train, targets, tmp_path):
    whole, steps = train("whole", targets=targets), (1, 3, 4, 6, 7)
    with crashing(*steps):
        for _ in steps:
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
