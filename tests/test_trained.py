"""A training from its settings to its file: what it writes, draws and says, and what it refuses before it writes anything."""

import numpy as np
import pytest
import torch
from PIL import Image

from sdlora import apply, files, models, training
from sdlora.errors import SdloraError
from sdlora.training import loop, planning, run
from sdlora.training.layout import Layout


@pytest.fixture
def config(small_training):
    return lambda **changes: small_training(**{"steps": 3, "warmup": 0, "learning_rate": 1e-2} | changes)


def test_a_failing_run_keeps_its_last_state(config, components, monkeypatch):
    settings = config(steps=4, save_every=2)
    real = loop.batch_loss
    monkeypatch.setattr(loop, "batch_loss", lambda r, b: real(r, b) * (float("inf") if r.step == 3 else 1))
    with pytest.raises(SdloraError, match="the loss is inf in step 4 .*the last good state is .*step-000002.pt") as caught:
        training.train(settings, progress=False, components=components)
    assert "\n" not in str(caught.value)
    place = Layout(settings.output)
    assert run.read_state(place.states[-1])["step"] == 2 and not place.adapter.exists()
    assert not [p for p in place.folder.iterdir() if ".tmp" in p.name]
    monkeypatch.undo()
    assert training.train(settings, progress=False, components=components) == place.adapter


def test_the_file_says_what_it_is_and_where_from(config, components, tmp_path):
    settings = config(trigger="sks style", alpha=4.0, name="Ink")
    path = training.train(settings, progress=False, components=components)
    head = files.read_metadata(path)
    assert head["ss_network_dim"] == "2" and head["ss_network_alpha"] == "4" and head["sdlora.base_hash"] == components.hash
    assert head["modelspec.trigger_phrase"] == "sks style" and head["modelspec.title"] == "Ink"
    assert '"sks style": 3' in head["ss_tag_frequency"] and '"images_hash"' in head[files.SETTINGS]
    assert str(tmp_path) not in str(head), "no path of this machine"
    assert len(files.load(path, components.modules).layers) == 56


def test_peft_format_on_request(config, components):
    path = training.train(config(format="peft", steps=1), progress=False, components=components)
    assert files.format_of(path) == "peft"


def test_samples_are_drawn_from_the_saved_file_on_the_bare_base(config, components, predict):
    settings, seen = config(steps=4, save_every=2), []
    before = predict(components)

    def draw(path, step):
        assert torch.equal(predict(components), before), "the trainable updates are off meanwhile"
        with apply.stacked(components.modules, [(files.load(path, components.modules), 1.0)]):
            assert not torch.equal(predict(components), before)
        seen.append((path.name, step))

    training.train(settings, draw, progress=False, components=components)
    assert seen == [("step-000002.safetensors", 2), ("adapter.safetensors", 4)]
    assert torch.equal(predict(components), before)


def test_prior_pictures_are_drawn_once_with_the_bare_base(config, components):
    calls = []

    def imagine(base, wanted, prior):
        assert base is components and not any("forward" in vars(part) for part in base.unet.modules()), "as anybody else draws"
        calls.append(list(wanted))
        for _, seed in wanted:
            yield Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8))

    settings = config(prior={"prompts": ("a cat", "a dog"), "images": 10}, steps=2)
    path = training.train(settings, progress=False, imagine=imagine, components=components)
    assert [len(call) for call in calls] == [8, 2] and [prompt for prompt, _ in calls[1]] == ["a cat", "a dog"]
    assert len({seed for call in calls for _, seed in call}) == 10
    first = path.read_bytes()
    pictures = sorted(Layout(settings.output).prior.rglob("*.png"))
    assert len(pictures) == 10
    pictures[3].unlink()  # its group is drawn again, as a whole
    path.unlink()
    Layout(settings.output).states[-1].unlink()
    assert training.train(settings, progress=False, imagine=imagine, components=components).read_bytes() == first
    assert [len(call) for call in calls] == [8, 2, 8]
    with pytest.raises(SdloraError, match="imagine"):
        training.train(config(prior={"prompts": ("a cow",)}, output=settings.output.parent / "b"), progress=False, components=components)


def test_a_plan_counts_and_touches_nothing(config, tiny_base, tmp_path):
    settings = config(base=str(tiny_base), targets=("attention", "text_mlp"), rank=4, trigger="sks style", steps=30, accumulate=2)
    found = planning.plan(settings)
    skeleton = models.skeleton(tiny_base)
    fresh = apply.inject(skeleton, apply.select(skeleton, ("attention", "text_mlp")), 4, 4.0)
    assert found.parameters == sum(p.numel() for p in fresh) and found.images == 3 and found.targets[0].layers == 56
    text = "\n".join(planning.lines(found))
    assert "40.0 times each image" in text and f"{found.parameters:,}" in text and "text encoder 0.005" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": "emojy"}, ["emojy", "did you mean emoji?"]),
        ({"trigger": "zorbot"}, ["the trigger 'zorbot' is in none of the 3 captions"]),
        ({"device": "cuda:77"}, ["device is 'cuda:77'", "cpu"]),
        ({"resolution": 20}, ["resolution is 20", "multiple of 16"]),
    ],
)
def test_what_a_run_cannot_use_is_said_before_anything_is_written(config, tiny_base, tmp_path, changes, words):
    with pytest.raises(SdloraError) as caught:
        training.train(config(**{"base": str(tiny_base)} | changes), progress=False)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be_written_is_said(config, components, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SdloraError, match="cannot write into .*file"):
        training.train(config(output=tmp_path / "file" / "run"), progress=False, components=components)


def test_a_corrupt_image_is_refused_before_anything_is_written_if_so_asked(config, components, pictures, tmp_path):
    (pictures / "1.png").write_bytes((pictures / "1.png").read_bytes()[:300])
    with pytest.raises(SdloraError, match="1.png is not a readable image"):
        training.train(config(strict=True), progress=False, components=components)
    assert not (tmp_path / "run").exists()


def test_one_device_for_several_processes_is_refused(monkeypatch):
    from sdlora.training import placement

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SdloraError, match="device is 'cuda:0', and 2 processes were launched; with device=auto each gets its own"):
        placement.device("cuda:0")
