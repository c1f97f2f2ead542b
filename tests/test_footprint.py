"""Memory foreseen, settings that fit it, and three real steps that leave nothing behind."""

import re

import pytest
import torch
from skeletons import networks

from sdlora import apply
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig, fitting, footprint, measuring, planning
from sdlora.training.footprint import GIB

# bf16, attention, rank 8, one picture: train/memory.py's count on tensors without numbers, forward and backward
COUNTED = [
    ("sd1", 512, False, 0.772),
    ("sd1", 512, True, 0.216),
    ("sd1", 256, False, 0.198),
    ("sdxl", 1024, False, 5.286),
    ("sdxl", 1024, True, 0.510),
]
JOINED = [("sd1", 512, False, 1.198), ("sd1", 512, True, 0.353), ("sd1", 256, False, 0.306), ("sdxl", 1024, False, 8.529)]  # in fp32


@pytest.fixture
def config(tmp_path):
    def make(**changes) -> TrainConfig:
        usual = {"images": tmp_path, "output": tmp_path / "run", "base": "x", "precision": "bf16", "batch_size": 1, "device": "cpu"}
        usual["samples"] = {"count": 0}  # nothing but the steps
        return TrainConfig(**usual | changes)

    return make


@pytest.mark.parametrize(("family", "size", "checkpointing", "counted"), COUNTED)
def test_the_activations_foreseen_are_those_counted(config, family, size, checkpointing, counted):
    found = footprint.estimate(config(resolution=size, gradient_checkpointing=checkpointing), networks(family))
    assert found.activations / GIB == pytest.approx(counted, rel=0.15 if checkpointing else 0.02)


@pytest.mark.parametrize(("family", "size", "checkpointing", "counted"), JOINED)
def test_the_activations_of_blocks_that_compute_as_one_are_those_counted(config, family, size, checkpointing, counted):
    settings = {"resolution": size, "gradient_checkpointing": checkpointing, "precision": "fp32"}
    found = footprint.estimate(config(**settings), networks(family)).activations
    assert found / GIB == pytest.approx(counted, rel=0.04)
    apart = footprint.estimate(config(**settings, dropout={"rank": 0.1}), networks(family)).activations
    assert (
        found < 0.87 * apart and apart == 2 * footprint.estimate(config(**settings | {"precision": "bf16"}), networks(family)).activations
    )


def test_what_is_trained_beside_the_attention_is_kept_by_joined_blocks_too(config):
    found = footprint.estimate(config(resolution=512, precision="fp32", targets=("attention", "feed_forward")), networks("sd1"))
    assert found.activations / GIB == pytest.approx(1.413, rel=0.04)


def test_weights_and_the_adapter_are_counted_to_the_byte(config):
    modules = networks("sd1")
    settings = config(targets=("attention", "text_mlp"), rank=4).settled()
    found = footprint.estimate(settings, modules)
    assert found.weights == 2 * sum(p.numel() for name, module in modules.items() for p in module.parameters() if name != "vae")
    assert found.adapter == 16 * sum(
        target.parameters for target in planning.targets_of(config(targets=("attention", "text_mlp"), rank=4).settled(), modules)
    )
    assert footprint.estimate(config(), modules).weights == 2 * sum(p.numel() for p in modules["unet"].parameters())


def test_memory_grows_with_the_batch_and_the_pictures_alone(config):
    modules = networks("sd1")
    one, four = (footprint.estimate(config(batch_size=n), modules) for n in (1, 4))
    assert four.activations == pytest.approx(4 * one.activations) and four.weights == one.weights and four.adapter == one.adapter
    half = footprint.estimate(config(precision="fp32", compile=True), modules)  # compiled, no blocks are joined
    assert half.activations == 2 * one.activations and half.weights == 2 * one.weights and half.adapter == one.adapter
    with_prior = footprint.estimate(config(prior={"prompts": ("a",), "batch_size": 3}), modules)
    assert with_prior.activations == four.activations


@pytest.mark.parametrize("size", ["24GB", "16GB", "12 GiB"])
def test_what_is_chosen_fits_and_makes_the_same_step(config, size):
    modules = networks("sdxl")
    wanted = config(resolution=1024, batch_size=4, accumulate=2, precision="fp32")
    found = fitting.fit(wanted, fitting.parse(size), modules)
    assert found.config.samples_per_step == 8 and found.reasons
    assert footprint.estimate(found.config, modules).total * fitting.SLACK + fitting.RESERVE["cpu"] <= fitting.parse(size)
    changed = {name for name in TrainConfig.model_fields if getattr(found.config, name) != getattr(wanted, name)}
    assert changed <= {"precision", "batch_size", "accumulate", "gradient_checkpointing", "vae_tiling"}
    assert all(f"{name} " in " ".join(found.reasons) for name in changed)
    faster = [c for c in fitting.candidates(wanted, "fp32")]
    before = faster[: next(i for i, c in enumerate(faster) if c == found.config)]
    assert all(footprint.estimate(c, modules).total * fitting.SLACK + fitting.RESERVE["cpu"] > fitting.parse(size) for c in before)


def test_more_memory_never_takes_a_slower_way(config):
    modules, wanted = networks("sdxl"), config(resolution=1024, batch_size=4, precision="fp32")
    ways = [fitting.fit(wanted, size * GIB, modules).config for size in (10, 12, 16, 24, 48, 96)]
    order = list(fitting.candidates(wanted, "fp32"))
    places = [order.index(way) for way in ways]
    assert places == sorted(places, reverse=True) and len(set(places)) > 3
    assert ways[-1] == wanted and fitting.fit(wanted, 96 * GIB, modules).reasons[0].startswith("fits 96.00 GiB as it is")


def test_a_precision_that_is_changed_is_said_also_where_it_was_left_open(config, monkeypatch):
    monkeypatch.setattr(fitting.placement, "precision", lambda wanted, where: "fp32" if wanted == "auto" else wanted)
    found = fitting.fit(config(resolution=512, precision="auto"), fitting.parse("6GB"), networks("sd1"))
    assert found.config.precision == "bf16" and "precision fp32 → bf16" in found.reasons[0]


def test_what_no_choice_makes_fit_is_said(config):
    with pytest.raises(
        SdloraError,
        match=r"nothing fits 2.00 GiB: .* it still takes about \d\.\d\d GiB while encoding the pictures; take a smaller resolution",
    ):
        fitting.fit(config(resolution=1024), 2 * GIB, networks("sdxl"))
    for text in ("8", "eight", "0GB", "-8GB"):
        with pytest.raises(SdloraError, match="is no size of a memory; write it as 8GB"):
            fitting.parse(text)


def test_three_measured_steps_leave_nothing_behind(tiny_base, components, pictures, tmp_path, predict):
    settings = TrainConfig(
        images=pictures, output=tmp_path / "run", base=str(tiny_base), resolution=32, batch_size=1, precision="fp32", rank=2
    )
    before, there = predict(components), sorted(tmp_path.rglob("*"))
    found = measuring.measure(settings, components)
    assert len(found.seconds) == 3 and min(found.seconds) > 0 and found.encoding > 0
    assert torch.equal(predict(components), before) and sorted(tmp_path.rglob("*")) == there
    assert not any(hasattr(m, apply.inject.__globals__["CHILD"]) for m in components.unet.modules())
    assert re.match(r"speed    \d+\.\d\d s per step, so .* for 300", measuring.lines(found, settings)[0])
