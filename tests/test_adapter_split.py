"""`sdlora adapter split`: the layers of a pattern as an adapter of their own, and the others beside it."""

import json

import pytest
import torch
from safetensors.torch import load
from skeletons import short

from sdlora import files
from sdlora.adapter import Adapter
from sdlora.commands import adapter as command
from sdlora.errors import SdloraError
from sdlora.files.parts import PART
from sdlora.training import again


@pytest.fixture
def run(command_line):
    return command_line(command, "adapter")


@pytest.fixture
def blora(random_adapter, tmp_path):
    """On the attention of a small SDXL."""
    modules = {"unet": short("sdxl")["unet"]}
    made = random_adapter(modules, ("attention",), rank=lambda i: 2 + i % 3, alpha=lambda i: 1.0 + i % 2)
    metadata = files.header(made.layers, name="ink", base="sdxl", family="sdxl", triggers=("in ink",), settings={"rank": 4})
    return files.save(Adapter(made.layers, metadata), tmp_path / "blora.safetensors")


def same(one, other) -> bool:
    return torch.equal(one.a, other.a) and torch.equal(one.b, other.b) and one.alpha == other.alpha


@pytest.mark.parametrize("format", ["kohya", "peft"])
def test_style_and_content_are_apart_and_together_what_the_adapter_was(run, blora, tmp_path, format):
    style, content = tmp_path / "style.safetensors", tmp_path / "content.safetensors"
    said = run("split", blora, style, "--blocks", "b-lora-style", "--rest", content, "--format", format)
    whole, part, rest = (files.read(path) for path in (blora, style, content))
    assert all(name.startswith("unet.up_blocks.0.attentions.1.") for name in part.layers) and part.layers
    assert part.layers.keys() | rest.layers.keys() == whole.layers.keys() and not part.layers.keys() & rest.layers.keys()
    assert all(same(update, whole.layers[name]) for piece in (part, rest) for name, update in piece.layers.items())
    assert f"{style}: {len(part.layers)} of {len(whole.layers)} layers" in said
    facts = json.loads(part.metadata[PART])
    assert facts == {"of": "blora.safetensors", "blocks": ["b-lora-style"], "layers": [len(part.layers), len(whole.layers)]}
    assert json.loads(rest.metadata[PART])["without"] == ["b-lora-style"]
    assert part.metadata["modelspec.trigger_phrase"] == "in ink"
    assert part.metadata["ss_network_dim"] == str(max(update.rank for update in part.layers.values()))
    assert part.metadata["sshs_model_hash"] != whole.metadata["sshs_model_hash"]


def test_several_patterns_choose_together(run, blora, tmp_path):
    run("split", blora, tmp_path / "some.safetensors", "--blocks", "unet.mid", "--blocks", "*.attn2.to_k")
    layers = files.read(tmp_path / "some.safetensors").layers
    assert layers and all(name.startswith("unet.mid_block.") or name.endswith("attn2.to_k") for name in layers)


def test_embeddings_that_no_part_holds_are_named(run, blora, tmp_path):
    blora.write_bytes(files.serialised(load(blora.read_bytes()) | {"bundle_emb.<ink>.clip_l": torch.ones(2, 3)}, {}))
    assert "left out: the embedding of '<ink>'" in run("split", blora, tmp_path / "style.safetensors", "--blocks", "b-lora-style")


def test_training_again_from_a_part_says_that_its_settings_are_of_the_whole(run, blora, tmp_path):
    run("split", blora, tmp_path / "style.safetensors", "--blocks", "b-lora-style")
    assert any("is a part of an adapter" in note for note in again.read(tmp_path / "style.safetensors").notes)
    assert not again.read(blora).notes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("out.safetensors", "--blocks", "unet.upp"), "--blocks: 'unet.upp' matches no layer of .*blora.safetensors"),
        (("out.safetensors", "--blocks", "unet", "--rest", "rest.safetensors"), "are all layers of .*; nothing is left for"),
        (("out.safetensors", "--blocks", "unet.mid", "--rest", "out.safetensors"), "OUT and --rest are both"),
        (("out.bin", "--blocks", "unet.mid"), "cannot write .*: give a name that ends in .safetensors"),
        (("blora.safetensors", "--blocks", "unet.mid"), "is there already"),
    ],
)
def test_a_split_that_cannot_be_is_refused_and_nothing_is_written(run, blora, tmp_path, words, message):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SdloraError, match=message):
        run("split", blora, *(tmp_path / word if "." in word and not word.startswith("unet") else word for word in words))
    assert sorted(tmp_path.iterdir()) == before
