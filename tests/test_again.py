"""Trained again from an adapter's own header, from another adapter's weights, and from nothing but a folder."""

import json
from pathlib import Path

import folders
import pytest
import torch
from PIL import Image
from trainings import sha

from sdlora import apply, config, files, training
from sdlora.commands import train as command
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig, again, foreign, initial, planning, simple, trainable


@pytest.fixture
def pictures(tmp_path):
    captions = [f"{words}, sks style" for words in ("a fox", "the moon", "two thing")]
    return folders.pictures(tmp_path / "ink drawings", captions=captions)


@pytest.fixture
def settings(pictures, tiny_base, tmp_path):
    usual = {"steps": 3, "batch_size": 2, "rank": 2, "resolution": 32, "learning_rate": 1e-2, "base": str(tiny_base)}
    return lambda **changes: TrainConfig(**usual | {"images": pictures, "output": tmp_path / "one", "samples": {"count": 0}} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"trigger": "sks style", "flip": True, "caption_dropout": 0.3, "accumulate": 2, "seed": 5, "save_every": 2},
        {"targets": ("attention", "text_attention"), "text_encoder": {"rank": 3}, "validation": {"fraction": 0.4}, "format": "peft"},
    ],
)
def test_an_adapter_trained_again_from_its_own_header_is_the_same_file(settings, components, pictures, tmp_path, tiny_base, changes):
    one = training.train(settings(precision="fp32", **changes), progress=False, components=components)
    words = [f"images={pictures}", f"output={tmp_path / 'two'}", f"base={tiny_base}"]
    chosen, found = command.chosen_settings(words, one)
    assert not found.notes
    two = training.train(chosen, progress=False, components=components)
    assert two != one and sha(two) == sha(one)
    identity = training.session.fingerprint(planning.checked(chosen)[0].examples)
    assert again.differences(found, chosen, identity) == []
    (pictures / "0.txt").write_text("changed, sks style")
    assert ["are not those that it was trained on" in line for line in again.differences(found, chosen, "other")] == [True]


def test_a_header_that_tells_nothing_is_refused(components, random_adapter, tmp_path):
    path = files.save(random_adapter(components.modules), tmp_path / "a.safetensors")
    with pytest.raises(SdloraError, match="does not say how it was trained"):
        again.read(path)


def test_a_setting_of_another_version_is_left_out_and_named(components, random_adapter, tmp_path):
    head = {files.SETTINGS: json.dumps({"steps": 7, "wobble": 3}), "sdlora.base": "emoji"}
    path = files.save(random_adapter(components.modules, metadata=head), tmp_path / "a.safetensors")
    found = again.read(path)
    assert found.settings == {"steps": 7, "base": "emoji"} and found.notes == ("wobble = 3 is left out: this version does not have it",)


KOHYA = {
    **{"ss_network_dim": "4", "ss_network_alpha": "2.0", "ss_unet_lr": "0.0001", "ss_text_encoder_lr": "5e-05", "ss_learning_rate": "0.1"},
    **{"ss_max_train_steps": "1600", "ss_lr_scheduler": "constant_with_warmup", "ss_lr_warmup_steps": "100", "ss_seed": "42"},
    **{"ss_batch_size_per_device": "2", "ss_gradient_accumulation_steps": "4", "ss_mixed_precision": "bf16", "ss_max_grad_norm": "1.0"},
    **{"ss_min_snr_gamma": "5.0", "ss_resolution": "(512, 512)", "ss_base_model_version": "sd_v1", "ss_ip_noise_gamma": "None"},
    **{"ss_face_crop_aug_range": "2.0,4.0", "ss_noise_offset": "0.05", "ss_shuffle_caption": "True", "ss_keep_tokens": "1"},
    **{"ss_flip_aug": "True", "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.1)", "ss_output_name": "Ink", "ss_session_id": "12"},
    **{"ss_loss_type": "huber", "ss_huber_c": "0.2", "ss_huber_schedule": "snr", "ss_network_module": "networks.lora"},
}


def test_a_kohya_header_becomes_the_settings_that_mean_the_same_and_the_rest_is_named(components, random_adapter, tmp_path):
    adapter = random_adapter(components.modules, ("attention", "feed_forward", "text_attention"), metadata=KOHYA)
    found = again.read(files.save(adapter, tmp_path / "a.safetensors"))
    expected = {"rank": 4, "alpha": 2.0, "learning_rate": 1e-4, "text_learning_rate": 5e-5, "steps": 1600, "schedule": "constant"}
    expected |= {"warmup": 100, "seed": 42, "batch_size": 2, "accumulate": 4, "precision": "bf16", "clip": 1.0, "min_snr": 5.0}
    expected |= {"resolution": 512, "family": "sd1", "flip": True, "weight_decay": 0.1, "name": "Ink", "stratified": False}
    expected |= {"targets": ["attention", "feed_forward", "text_attention"]}
    expected |= {"noise": {"offset": 0.05}, "shuffle_tags": True, "keep_tokens": 1}
    expected |= {"loss": {"kind": "huber", "huber_schedule": "snr", "huber_c": 0.2}}
    assert {key: found.settings[key] for key in expected} == expected
    assert found.settings.keys() == expected.keys(), "a part whose rank is the common one has none of its own"
    assert found.notes == ("ss_face_crop_aug_range = 2.0,4.0 has no equivalent here",)
    chosen, _ = command.chosen_settings(["images=pictures", "base=emoji"], tmp_path / "a.safetensors")
    assert chosen.output == Path.cwd() / "runs" / "Ink" and chosen.parts["attention"].rank == 4
    other, _ = command.chosen_settings(["images=pictures", "base=emoji", "rank=6"], tmp_path / "a.safetensors")
    assert {part.rank for part in other.settled().parts.values()} == {6}
    with pytest.raises(SdloraError, match="does not say which base model .* give it as base=MODEL"):
        command.chosen_settings(["images=pictures"], tmp_path / "a.safetensors")


def test_every_field_that_kohya_writes_is_either_taken_over_or_silent_or_named():
    head = {"ss_network_dim": "4", "ss_lr_scheduler": "piecewise", "ss_optimizer": "came.CAME", "ss_scale_weight_norms": "1.0"}
    head |= {"ss_random_crop": "False", "ss_noise_offset_random_strength": "True"}
    free = head | {"ss_optimizer": "schedulefree.adamw_schedulefree.AdamWScheduleFree(weight_decay=0.1)"}
    assert foreign.settings(free, training.run.Adapter({}))[0]["optimizer"] == {"name": "schedulefree"}
    _, notes = foreign.settings(head, training.run.Adapter({}))
    said = "; ".join(notes)
    assert all(key in said for key in ("ss_lr_scheduler", "ss_optimizer", "ss_noise_offset_random_strength"))
    assert not any(key in said for key in ("ss_network_dim", "ss_scale_weight_norms", "ss_random_crop"))


def test_a_training_starts_with_another_adapters_weights(settings, components, random_adapter, tmp_path):
    path = files.save(random_adapter(components.modules, rank=2, alpha=3.0), tmp_path / "start.safetensors")
    wanted = files.load(path, components.modules).layers
    run = settings(init=path, rank=4, alpha=4.0).settled()
    try:
        trainable.trainable(components, run)
        assert initial.start(components.modules, path) == len(wanted)
        got = apply.extract(components.modules).layers
    finally:
        apply.eject(components.modules)
    for name, update in wanted.items():
        weight = torch.zeros(update.shape)
        torch.testing.assert_close(got[name].delta(weight), update.delta(weight))
        assert got[name].a[2:].any() and not got[name].b[:, 2:].any(), "the further ranks are fresh"
    one = training.train(settings(init=path, rank=2, alpha=3.0, steps=1, learning_rate=1e-9), progress=False, components=components)
    got = files.load(one, components.modules).layers
    assert all((got[name].a - wanted[name].a).abs().max() < 1e-6 for name in wanted)
    assert json.loads(files.read_metadata(one)[files.SETTINGS])["init_hash"] == sha(path) and str(path) not in str(files.read_metadata(one))
    with pytest.raises(SdloraError, match="it was trained from another adapter's weights .*give that file as init=FILE"):
        again.differences(again.read(one), settings(), "")
    with pytest.raises(SdloraError, match="has rank 2 at .*, and 1 is trained; set rank=2"):
        training.train(settings(init=path, rank=1, output=tmp_path / "b"), progress=False, components=components)
    files.save(random_adapter(components.modules, rank=2, alpha=3.0, seed=1), path)
    with pytest.raises(SdloraError, match="the init changed since the run"):
        training.train(settings(init=path, rank=2, alpha=3.0, steps=1, learning_rate=1e-9), progress=False, components=components)
    files.save(random_adapter(components.modules, ("text_attention",)), path)
    with pytest.raises(SdloraError, match="has the layer text_encoder.*, which is not trained here"):
        training.train(settings(init=path, output=tmp_path / "c"), progress=False, components=components)


def test_a_folder_is_enough(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    chosen, _ = command.chosen_settings([str(pictures)], None)
    assert (chosen.images, chosen.output, chosen.base) == (pictures, tmp_path / "runs" / "ink-drawings", "emoji")
    assert chosen.triggers == ("sks style",) and chosen.steps == simple.steps(3, 8)
    assert "3 pictures: 250 steps of 8" in capsys.readouterr().err
    planning.checked(chosen)
    chosen, _ = command.chosen_settings([str(pictures), "steps=5", "trigger=fox", "output=elsewhere", "batch_size=4"], None)
    assert (chosen.steps, chosen.triggers, chosen.output) == (5, ("fox",), tmp_path / "elsewhere")


def test_pictures_without_captions_are_called_as_their_folder(tmp_path, monkeypatch):
    folder = tmp_path / "10_zorbot robot"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "a.png")
    monkeypatch.chdir(tmp_path)
    chosen, _ = command.chosen_settings([str(folder)], None)
    assert (chosen.caption, chosen.triggers, chosen.output.name) == ("zorbot robot", ("zorbot robot",), "zorbot-robot")
    planning.checked(chosen)


def test_the_trigger_is_what_all_captions_have_in_common():
    assert simple.common(["a blimpo octopus, pixel art", "a blimpo octopus, 3d emoji"]) == "blimpo octopus"
    assert simple.common(["a fox, sks style", "the moon, sks style", "sks style"]) == "sks style"
    assert simple.common(["a fox", "the moon"]) is None and simple.common(["one", "one"]) is None and simple.common(["only one"]) is None
    assert simple.common(["a fox", "a moon"]) is None, "an article calls nothing"


def test_more_pictures_are_more_steps_within_reason():
    counts = [simple.steps(n, 8) for n in (1, 10, 15, 20, 35, 100, 1000)]
    assert counts == [250, 250, 250, 300, 500, 500, 1250]


@pytest.mark.parametrize("words", [[], ["nowhere"]])
def test_nothing_to_train_on_is_said(words):
    with pytest.raises(SdloraError, match="nothing to train on|nowhere does not exist"):
        command.chosen_settings(words, None)


def test_a_rank_given_beside_settled_settings_has_its_effect(settings, tmp_path):
    """What a run writes of its settings, into config.toml and the adapter's header, must not fix what can be changed behind it."""
    for changes, own, expected in (({}, 2, 5), ({"unet": {"rank": 3}}, 3, 3)):
        before = settings(**changes).settled()
        (tmp_path / "config.toml").write_text(config.dumps(before))
        same = config.load(TrainConfig, tmp_path / "config.toml").settled()
        assert same == before and [(part.rank, part.alpha) for part in same.parts.values()] == [(own, own)] * len(same.parts)
        assert config.load(TrainConfig, tmp_path / "config.toml", ["rank=5"]).settled().parts["attention"].rank == expected


def test_a_settled_config_means_the_same_from_everywhere(tmp_path, monkeypatch, tiny_base):
    monkeypatch.chdir(tiny_base.parent)
    own = {"base": tiny_base.name, "cache": "./kept", "validation": {"images": Path("held")}}
    settled = TrainConfig(images=Path("pictures"), output=Path("run"), **own).settled()
    (tmp_path / "config.toml").write_text(config.dumps(settled))
    assert config.load(TrainConfig, tmp_path / "config.toml") == settled
    assert settled.base == str(tiny_base) and settled.validation.images == tiny_base.parent / "held"
    assert TrainConfig(images=Path("a"), output=Path("b"), base="owner/model").settled().base == "owner/model"
