"""Layers by pattern: which ones are trained, with which rank, α and rate; B-LoRA's blocks on the true SDXL."""

import math
from pathlib import Path

import pytest
import torch
from skeletons import true_size

from sdlora.apply import patterns
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig
from sdlora.training.trainable import layers

NAMES = [f"unet.{block}.attn{i}.to_q" for block in ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.1") for i in (1, 2)]


def plan(family="sdxl", **changes):
    config = TrainConfig(images=Path("i"), output=Path("o"), **changes)
    return layers(true_size(family), config.settled())


@pytest.mark.parametrize(
    ("pattern", "number"),
    [
        ("unet", 8),
        ("unet.down", 4),
        ("unet.down.1", 2),
        ("unet.down_blocks.1", 2),
        ("unet.mid", 2),
        ("*.attn2.*", 4),
        ("*.attn2", 4),
        ("unet.*_blocks.1", 4),
        ("unet.down.[0]", 2),
        ("unet.up.1.attn1.to_q", 1),
        ("unet.down_blocks.1.attn", 0),
        ("down", 0),
    ],
)
def test_a_pattern_is_a_glob_or_a_whole_block(pattern, number):
    assert sum(patterns.matches(pattern, name) for name in NAMES) == number


def test_include_and_exclude_choose_among_the_targets():
    assert patterns.selected(NAMES, ["unet.down", "unet.mid"], ["*.attn1.*"]) == [NAMES[1], NAMES[3], NAMES[5]]
    assert patterns.selected(NAMES) == NAMES


def test_the_last_pattern_that_matches_counts():
    found = patterns.assigned(NAMES, {"unet.down": 4, "unet.down.1": 16, "*.attn1.*": 2}, "ranks")
    assert [found.get(name) for name in NAMES] == [2, 4, 2, 16, 2, None, 2, None]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("unet.donw_blocks.1", "did you mean unet.down_blocks.1"),
        ("conv9", "there are, for example, unet.down_blocks.0.attn1.to_q and unet"),
    ],
)
def test_a_pattern_without_layers_is_refused(pattern, words):
    with pytest.raises(SdloraError, match="ranks: .* matches no layer that is trained") as caught:
        patterns.assigned(NAMES, {pattern: 4}, "ranks")
    assert words in str(caught.value)


@pytest.mark.parametrize(("preset", "where", "number"), [("b-lora-content", "0", 80), ("b-lora-style", "1", 80), ("b-lora", "", 160)])
def test_b_lora_trains_the_attention_of_its_blocks(preset, where, number):
    found = plan(include=(preset,))
    assert len(found) == number, "ten transformer blocks, two attentions, four layers"
    assert all(name.startswith(f"unet.up_blocks.0.attentions.{where}") for name in found)


def test_b_lora_is_refused_for_other_families():
    with pytest.raises(SdloraError, match="b-lora-style is unet.up_blocks.0.attentions.1 of SDXL"):
        plan("sd1", ranks={"b-lora-style": 4})


def test_blocks_have_their_own_rank_alpha_and_rate_and_0_leaves_them_out():
    found = plan("sd1", rank=8, alpha=4.0, ranks={"unet.down": 16, "unet.down.0": 0}, alphas={"unet.down.2": 1.0}, rates={"unet.mid": 0.5})
    kinds = {name.split(".")[1] + "." + name.split(".")[2]: (one.rank, one.alpha, one.factor) for name, one in found.items()}
    assert kinds["down_blocks.1"] == (16, 8.0, 1.0), "α / r stays what it was"
    assert kinds["down_blocks.2"] == (16, 1.0, 1.0) and kinds["mid_block.attentions"] == (8, 4.0, 0.5)
    assert kinds["up_blocks.3"] == (8, 4.0, 1.0) and "down_blocks.0" not in kinds


def test_a_target_of_which_nothing_is_left_is_refused():
    with pytest.raises(SdloraError, match="leave no layer of the target text_attention"):
        plan("sd1", targets=("attention", "text_attention"), include=("unet.mid",))


def test_rank_stabilised_scaling_is_pefts_in_every_program_that_reads_the_file(components, tmp_path):
    """By way of a file in kohya's format: α/√r of PEFT's own layer with the same A and B."""
    import peft

    from sdlora import apply, files

    config = TrainConfig(images=Path("i"), output=Path("o"), rank=4, alpha=2.0, rslora=True, include=("unet.mid",)).settled()
    chosen = layers(components.modules, config)
    ranks, alphas = {name: one.rank for name, one in chosen.items()}, {name: one.alpha for name, one in chosen.items()}
    assert set(alphas.values()) == {2.0 * math.sqrt(4)}
    try:
        for parameter in apply.inject(components.modules, list(ranks), ranks, alphas):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
        files.save(apply.extract(components.modules), tmp_path / "a.safetensors")
    finally:
        apply.eject(components.modules)
    name, update = next(iter(files.load(tmp_path / "a.safetensors", components.modules).layers.items()))
    out, wide = update.shape
    model = torch.nn.Sequential(torch.nn.Linear(wide, out, bias=False))
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=2, use_rslora=True, target_modules=["0"])).base_model.model[0]
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(update.a)
        theirs.lora_B["default"].weight.copy_(update.b)
    torch.testing.assert_close(update.delta(torch.zeros(out, wide)), theirs.get_delta_weight("default").detach(), rtol=1e-6, atol=1e-6)
