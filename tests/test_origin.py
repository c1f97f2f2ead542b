"""Laws of what an adapter tells of its origin: the layers go before the header, and where nothing tells nothing is said."""

import json

import pytest
from skeletons import short, true_size

from sdlora.apply import select
from sdlora.layers import named_layers
from sdlora.origin import family_of, tags, title, trainer_of, triggers


def shapes(modules, targets=None) -> dict[str, tuple[int, ...]]:
    layers = named_layers(modules)
    return {name: tuple(layers[name].weight.shape) for name in (select(modules, targets) if targets else layers)}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("targets", [None, ("attention",), ("attention", "feed_forward", "projections")])
def test_the_true_families_are_told_by_their_layers_whatever_the_header_says(family, targets):
    for said in ({}, {"ss_base_model_version": "sd_v1"}, {"ss_base_model_version": "sdxl_base_v1-0"}):
        assert family_of(shapes(true_size(family), targets), said) == family


def test_sdxl_is_told_by_its_names_and_sd_1_and_2_by_what_the_header_says_where_widths_are_small():
    assert family_of(shapes(short("sdxl"))) == "sdxl"
    assert family_of(shapes(short("sd1"))) == "sd1"
    assert family_of(shapes(short("sd2")), {"ss_base_model_version": "sd_v2_v"}) == "sd2"


def test_one_block_of_sdxl_is_enough_as_in_a_b_lora():
    found = {
        name: shape
        for name, shape in shapes(true_size("sdxl"), ("attention",)).items()
        if name.startswith("unet.up_blocks.0.attentions.1.")
    }
    assert len(found) == 80 and family_of(found) == "sdxl"


def test_a_transformer_is_told_and_nothing_is_said_where_nothing_tells(components):
    assert family_of({"unet.double_blocks_0_img_attn_proj": (3, 3)}) == "transformer"
    assert family_of({"transformer.x": (3, 3)}, {"ss_base_model_version": "sd_v1"}) == "transformer"
    assert family_of({"text_encoder.text_model.encoder.layers.0.mlp.fc1": (3072, 768)}) is None
    assert family_of(shapes(components.modules)) is None
    assert title("sdxl") == "Stable Diffusion XL" and title(None) == "another model"


@pytest.mark.parametrize(
    ("metadata", "keys", "trainer"),
    [
        ({"sdlora.settings": "{}", "ss_network_module": "networks.lora"}, (), "sdlora"),
        ({"ss_network_module": "networks.lora"}, (), "kohya's sd-scripts"),
        ({"ss_network_module": "lycoris.kohya"}, (), "kohya's sd-scripts with LyCORIS"),
        ({"ot_branch": "master", "ss_base_model_version": "sdxl_base_v1-0"}, (), "OneTrainer"),
        ({"software": json.dumps({"name": "ai-toolkit", "version": "0.1"}), "ss_output_name": "x"}, (), "ai-toolkit"),
        ({"lora_adapter_metadata": "{}"}, (), "diffusers or PEFT"),
        ({}, ("bundle_emb.ink.clip_l",), "OneTrainer"),
        ({"format": "pt", "software": "not JSON"}, (), None),
    ],
)
def test_the_trainer_is_told_by_header_and_keys(metadata, keys, trainer):
    assert trainer_of(metadata, keys) == trainer


def test_trigger_words_are_the_phrase_or_else_the_most_frequent_tags():
    counted = json.dumps({"10_ink": {"ink": 9, " a cat": 2}, "5_more": {"a cat": 3, "b": "many"}})
    assert tags({"ss_tag_frequency": counted}) == [("ink", 9), ("a cat", 5), ("b", 0)]
    assert triggers({"ss_tag_frequency": counted}, most=2) == ["ink", "a cat"]
    assert triggers({"ss_tag_frequency": counted, "modelspec.trigger_phrase": "in ink, drawn"}) == ["in ink", "drawn"]
    assert triggers({"ss_tag_frequency": "not JSON"}) == triggers({}) == []
