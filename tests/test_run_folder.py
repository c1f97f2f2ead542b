"""A run folder tells all about its run: pictures, machine, metrics, samples."""

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path

import folders
import numpy as np
import pytest
from PIL import Image

from sdlora import training
from sdlora.commands import train as command
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig, gallery, processes, progress, record, tracking
from sdlora.training.layout import Layout


@pytest.fixture
def pictures(tmp_path):
    return folders.pictures(tmp_path / "pictures", ((48, 32), (32, 40), (32, 32)))


@pytest.fixture
def config(pictures, tmp_path, tiny_base):
    def make(**changes) -> TrainConfig:
        usual = {"steps": 2, "batch_size": 1, "rank": 2, "resolution": 32, "precision": "fp32", "save_every": 1, "base": str(tiny_base)}
        return TrainConfig(**usual | {"images": pictures, "output": tmp_path / "run", "samples": {"steps": 1, "count": 2}} | changes)

    return make


def test_the_folder_names_every_picture_by_its_hash_and_the_machine_by_its_versions(config, components, pictures, monkeypatch):
    words = ["/opt/bin/sdlora", "train", "images=x", "wandb_api_key=abc123", "--hub-token=xyz", str(Path.home() / "a.toml")]
    monkeypatch.setattr(sys, "argv", words)
    training.train(config(), progress=False, components=components)
    place = Layout(config().output)
    entries = json.loads(place.manifest.read_text())
    assert [(e["file"], e["captions"], e["size"], e["part"]) for e in entries] == [
        ("0.png", ["picture 0, sks style"], [48, 32], "images"),
        ("1.png", ["picture 1, sks style"], [32, 40], "images"),
        ("2.png", ["picture 2, sks style"], [32, 32], "images"),
    ]
    assert [e["buckets"] for e in entries][2] == [[32, 32]] and all(len(e["buckets"]) == 1 for e in entries)
    assert all(e["sha256"] == hashlib.sha256((pictures / e["file"]).read_bytes()).hexdigest() for e in entries)
    training.train(config(), progress=False, components=components)
    starts = json.loads(place.environment.read_text())
    assert len(starts) == 2 and starts[0]["versions"]["torch"] == importlib.metadata.version("torch")
    assert starts[0]["command"] == "sdlora train images=x wandb_api_key=… --hub-token=… ~/a.toml"
    assert starts[0]["device"] == "cpu" and starts[0]["processes"] == 1


def test_a_grid_of_samples_grows_with_the_steps(config, components, tmp_path):
    command.carry_out(config(), progress=False, components=components)
    place = Layout(tmp_path / "run")
    names = [f"step-{step:06d}-{number}.png" for step in (0, 1, 2) for number in (1, 2)]
    assert sorted(path.name for path in place.grid.parent.iterdir()) == ["grid.png", *names]
    marks = command.marks_of(config(), command.prompts_of(config()))
    assert gallery.steps(place, marks) == [0, 1, 2]
    with Image.open(place.grid) as grid, Image.open(place.sample(2, 2)) as last, Image.open(place.sample(0, 2)) as first:
        assert np.asarray(last).any() and (np.asarray(last) != np.asarray(first)).any()
        three = grid.size
    place.sample(2, 1).unlink()
    gallery.grid(place, ["a", "b"], marks)
    with Image.open(place.grid) as grid:
        assert grid.height < three[1], "a step whose pictures are not all there is not shown"


def test_samples_that_are_there_are_not_drawn_again(config, components, tmp_path, monkeypatch):
    from sdlora import generation

    command.carry_out(config(), progress=False, components=components)
    monkeypatch.setattr(generation, "generate", None)
    command.carry_out(config(), progress=False, components=components)


def test_tensorboard_is_told_the_metrics_and_again_after_an_interruption(config, components, tmp_path, pictures):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = config(trackers=("tensorboard",), schedule="constant", validation={"fraction": 0.3, "timesteps": 1, "every": 1}, name="ink")
    training.train(settings, progress=False, components=components)
    training.train(settings.model_copy(update={"steps": 3}), progress=False, components=components)
    events = EventAccumulator(str(Layout(settings.output).trackers / "ink"))
    events.Reload()
    told = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    lines = training.session.Layout(settings.output).metrics.read_text().splitlines()
    losses = [(line["number"], pytest.approx(line["loss"])) for line in map(json.loads, lines)]
    assert told["loss"] == losses and len(losses) == 3
    assert [step for step, _ in told["validation loss"]] == [0, 1, 2, 3] and set(told) >= {"grad norm", "learning rate"}


def test_a_tracker_that_is_not_there_is_said_before_anything_is_written(config, components, tmp_path):
    assert tracking.PACKAGES.keys() == accelerate_names()
    with pytest.raises(SdloraError, match="trackers has 'tensorbord', which is unknown; did you mean tensorboard?"):
        training.train(config(trackers=("tensorbord",)), progress=False, components=components)
    with pytest.raises(SdloraError, match="trackers has comet_ml, which is not installed: pip install comet-ml"):
        training.train(config(trackers=("comet_ml",)), progress=False, components=components)
    assert not (tmp_path / "run").exists()


def accelerate_names() -> set[str]:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return set(LOGGER_TYPE_TO_CLASS)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ACCELERATE_USE_MEGATRON_LM", "true", "to use MEGATRON LM: Megatron-LM is for transformers of its own kind"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "--mixed_precision fp8"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "set compile = true"),
    ],
)
def test_what_accelerate_is_told_and_a_training_cannot_do_is_refused(monkeypatch, variable, value, words):
    processes.check()
    monkeypatch.setenv(variable, value)
    with pytest.raises(SdloraError, match=words):
        processes.check()


def test_the_commit_is_that_of_the_tree_that_runs():
    said = record.commit()
    assert said is None or len(said.rstrip("+")) == 40


def test_a_path_with_brackets_and_colons_is_said_as_it_is(capsys):
    progress.Terminal(1).say("left out: /a/[b]/[/c]/:cat:.png")
    assert capsys.readouterr().err == "left out: /a/[b]/[/c]/:cat:.png\n"


def test_a_picture_that_lies_there_twice_has_its_bucket_once(config, components, pictures):
    (pictures / "3.png").write_bytes((pictures / "2.png").read_bytes())
    (pictures / "3.txt").write_text("the same again")
    training.train(config(steps=1), progress=False, components=components)
    entries = json.loads(Layout(config().output).manifest.read_text())
    assert [entry["buckets"] for entry in entries[2:]] == [[[32, 32]], [[32, 32]]]
