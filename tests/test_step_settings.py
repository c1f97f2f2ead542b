"""The settings of a training step: contradictions are refused, the rest is told, written down and read again as it was."""

import math

import pytest
from trainings import FEW

from sdlora import config, files, training
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig, optimizers

PRODIGY, FREE = {"name": "prodigy"}, {"name": "schedulefree"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": "lion"}, "it is a table, so write optimizer.NAME=VALUE"),
        ({"optimizer": {"name": "prodgy"}}, "optimizer.name is 'prodgy'; did you mean prodigy?"),
        ({"optimizer": {"name": "lion", "eps": 1e-8}}, "optimizer.eps is no argument of lion; valid: betas"),
        ({"optimizer": {"d0": 1e-5}}, "optimizer.d0 is no argument of adamw"),
        ({"optimizer": {"name": "adafactor", "eps": 1e-8}}, "adafactor has two"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "both have to be at least 0 and less than 1"),
        ({"optimizer": PRODIGY, "learning_rate": 1e-4}, "prodigy finds the rate itself"),
        ({"optimizer": PRODIGY, "lora_plus": 4.0}, "prodigy has one learning rate for all layers"),
        ({"optimizer": PRODIGY, "text_encoder": {"learning_rate": 0.5}, "targets": ["attention", "text_mlp"]}, "has one learning rate"),
        ({"optimizer": FREE, "schedule": "cosine"}, "schedulefree needs no schedule"),
        ({"optimizer": FREE, "schedule_floor": 0.1}, "schedule_floor has no effect with schedulefree"),
        ({"optimizer": FREE | {"betas": [0.0, 0.999]}}, "divides by the first"),
        ({"optimizer": FREE, "ema": {"decay": 0.9}}, "averages the adapter already"),
        ({"optimizer": FREE, "max_norm": 1.0}, "max_norm cannot reach into the average"),
        ({"schedule_cycles": 2}, "schedule_cycles has no effect with schedule=cosine; it belongs to cosine_restarts"),
        ({"schedule": "constant", "schedule_floor": 0.1}, "schedule_floor has no effect with schedule=constant"),
        ({"loss": {"huber_c": 0.1}}, "loss.huber_c has no effect with loss.kind=mse"),
        ({"loss": {"kind": "huber", "huber_scale": 2.0}}, "no effect with loss.huber_schedule=snr"),
        ({"loss": {"weighting": "debiased"}, "min_snr": 5.0}, "two weightings; choose one"),
        ({"loss": {"p2_k": 2.0}}, "loss.p2_k has no effect without loss.weighting=p2"),
        ({"loss": {"weighting": "snr_range", "snr_range": [5.0, 1.0]}}, "two numbers that rise"),
        ({"loss": {"weighting": "p2", "p2_k": 0.0}}, "would be infinite"),
        ({"loss": {"unmasked_weight": 0.5}}, "loss.unmasked_weight has no effect with masks=off"),
        ({"noise": {"offset": 0.1, "pyramid_levels": 6}}, "choose one"),
        ({"noise": {"pyramid_discount": 0.3}}, "no effect without noise.pyramid_levels"),
        ({"noise": {"zero_snr": True}, "prediction": "epsilon"}, "needs a base that predicts v"),
        ({"timesteps": {"min": 500, "max": 400}}, "no timestep is left"),
        ({"timesteps": {"mean": 1.0}}, "timesteps.mean has no effect with timesteps.distribution=uniform"),
        ({"ranks": {"unet.mid": -1}}, "a rank is at least 1"),
        ({"rates": {"unet.mid": 0.0}}, "it has to be more than 0"),
        ({"dropout": {"rank": 0.1}, "compile": True}, "dropout cannot be compiled"),
        ({"explosion": 0.5}, "explosion is 0.5"),
        ({"dropout": {"rank": 1.0}}, "dropout.rank is 1.0"),
        ({"noise": {"ofset": 0.1}}, "noise.ofset"),
    ],
    ids=str,
)
def test_settings_that_contradict_or_do_nothing_are_refused_with_the_reason(small_training, changes, words):
    with pytest.raises(SdloraError) as caught:
        small_training(**changes)
    assert words in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        *({"optimizer": {"name": name}} for name in optimizers.KINDS),
        {"loss": {"weighting": "debiased", "kind": "huber"}, "targets": ["attention", "text_mlp"]},
        {"ranks": {"unet.down": 4, "*.attn2.to_q": 0}, "rates": {"b-lora": 0.5}, "alphas": {"unet": 2.0}},
        {"schedule": "wsd", "schedule_decay": 0.1, "ema": {"decay": 0.99}},
    ],
    ids=str,
)
def test_the_settings_a_run_writes_down_are_read_again_as_the_same(small_training, changes, tmp_path, monkeypatch):
    monkeypatch.setattr(optimizers, "installed", lambda name: True)
    settled = small_training(**changes).settled()
    (tmp_path / "config.toml").write_text(config.dumps(settled))
    again = config.load(TrainConfig, tmp_path / "config.toml")
    assert again == settled and again.settled() == settled


def test_the_plan_tells_what_is_not_usual(small_training):
    from sdlora.training import words

    usual = small_training(warmup=10).settled()
    assert (words.schedule(usual), words.loss(usual)) == ("then a cosine to 0", "Min-SNR 5, stratified timesteps")
    tables = {"noise": {"offset": 0.05}, "timesteps": {"max": 500}, "ema": {"decay": 0.99}, "dropout": {"rank": 0.1}}
    other = small_training(**tables, schedule="wsd", loss={"kind": "huber", "weighting": "p2"}, lora_plus=4.0, stratified=False).settled()
    assert words.loss(other) == "P2 huber, timesteps from 0 up to 500, noise offset 0.05"
    ends = "then constant, and over the last 20 % to 0; B 4 times as fast as A; average with decay 0.99; dropout 0 of numbers, "
    assert words.schedule(other) == ends + "0.1 of ranks, 0 of layers"


def test_the_header_says_how_the_step_was_made(small_training, running):
    run = running(small_training(**FEW, loss={"kind": "huber", "weighting": "debiased"}, noise={"offset": 0.05}, max_norm=1.0))
    head = training.run.metadata(run)
    expected = {"loss_type": "huber", "huber_schedule": "snr", "debiased_estimation": "True", "min_snr_gamma": "None"}
    expected |= {"noise_offset": "0.05", "scale_weight_norms": "1.0", "zero_terminal_snr": "False", "optimizer": "adamw"}
    assert {key: head[f"ss_{key}"] for key in expected} == expected
    assert '"weighting": "debiased"' in head[files.SETTINGS]
    assert math.isfinite(float(head["ss_learning_rate"]))
