"""Every manifest, keys and shapes that another program writes, is read: all its layers, in its dialect, or refused by its kind's name."""

import importlib.util
import json
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from skeletons import short
from torch import Tensor

from sdlora import files
from sdlora.errors import SdloraError
from sdlora.files import serialised
from sdlora.formats import decode, split
from sdlora.formats.foreign import kind_of
from sdlora.layers import named_layers

FOLDER = Path(__file__).parent / "manifests"
NAMES = sorted(path.stem for path in FOLDER.glob("*.txt"))
REFUSED = [name for name in NAMES if name.startswith("refused-")]
READ = [name for name in NAMES if name not in REFUSED]


@lru_cache
def manifest(name: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What is said of the file, and random tensors by its keys, shapes and precisions."""
    first, *rows = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    generator, tensors = torch.Generator().manual_seed(1), {}
    for row in rows:
        key, shape, precision = row.rsplit(" ", 2)
        size = [] if shape == "scalar" else [int(n) for n in shape.split("x")]
        tensors[key] = torch.randn(size, generator=generator).to(getattr(torch, precision))
    return json.loads(first), tensors


def test_there_are_manifests_of_every_family_and_dialect():
    said = [manifest(name)[0] for name in READ]
    assert {facts["family"] for facts in said} == {"sd1", "sd2", "sdxl"}
    assert {facts["dialect"] for facts in said} == {"kohya", "kohya-sgm", "diffusers+peft", "diffusers-old", "peft", "onetrainer"}
    assert len(REFUSED) >= 9 and all(facts["tensors"] == len(manifest(name)[1]) for name, facts in zip(READ, said, strict=True))


@pytest.mark.parametrize("name", READ)
def test_every_tensor_comes_to_its_layer_and_none_is_left_over(name, tmp_path):
    facts, tensors = manifest(name)
    path = tmp_path / "a.safetensors"
    path.write_bytes(serialised(tensors, {}))
    adapter, report = files.load_reported(path, short(facts["family"]))
    assert report.dialect == facts["dialect"] and report.unmatched == report.unknown == ()
    assert len(report.matched) == sum(bool(re.search(r"(down|lora_A)(\.default)?\.weight$", key)) for key in tensors)
    parts = len({id(t) for update in adapter.layers.values() for t in (update.a, update.b)})
    others = sum(key.endswith((".alpha", ".lora_mid.weight")) for key in tensors)  # what is taken up into the two matrices
    assert parts + others + len(report.surplus) == len(tensors)


@pytest.mark.parametrize("name", [name for name in READ if manifest(name)[0]["dialect"] in ("kohya", "peft", "diffusers+peft")])
def test_each_matrix_belongs_to_the_layer_whose_path_is_in_its_key(name):
    """Independently of the reader: without dots and underscores the layer's path is a part of the key."""
    tensors = manifest(name)[1]
    keys = {id(tensor): key for key, tensor in tensors.items()}
    for layer, update in decode({key: t for key, t in tensors.items() if ".lora_mid" not in key}).layers.items():
        path = bare(layer.partition(".")[2])
        assert path in bare(keys[id(update.a)]) and path in bare(keys[id(update.b)])


@pytest.mark.parametrize("level", ["", "text_model_"])  # that transformers 5 has lost, and files have
@pytest.mark.parametrize("name", [name for name in READ if manifest(name)[0]["dialect"] in ("kohya", "kohya-sgm") and "tucker" not in name])
def test_diffusers_own_reader_leads_every_tensor_of_kohyas_to_the_same_layer(name, level):
    """Its whole way, from Stability's block names to the dotted names of diffusers' modules, and α with them."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers, _maybe_map_sgm_blocks_to_diffusers

    facts, found = manifest(name)
    tensors = {re.sub(r"(lora_te\d?_)(encoder)", rf"\1{level}\2", key): tensor for key, tensor in found.items()}
    tensors |= {key: torch.tensor(5) for key, tensor in tensors.items() if key.endswith(".alpha") and not tensor}  # 0 is r here, 0 there
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(tensors), short(facts["family"])["unet"].config)
    theirs, alphas = _convert_non_diffusers_lora_to_diffusers(mapped)
    ours = decode(tensors).layers
    placed = {}
    for key, tensor in theirs.items():
        read = split(key)
        assert read is not None
        placed[read[:2]] = id(tensor)
    assert placed == {(layer, field): id(t) for layer, u in ours.items() for field, t in (("down", u.a), ("up", u.b))}
    assert sorted(alphas.values()) == sorted(u.alpha for layer, u in ours.items() if any(key.endswith(".alpha") for key in tensors))


def bare(text: str) -> str:
    return re.sub(r"[^a-z0-9]|text_model", "", text)


@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_are_refused_by_name_with_an_example(name, tmp_path):
    facts, tensors = manifest(name)
    path = tmp_path / "a.safetensors"
    path.write_bytes(serialised(tensors, {}))
    with pytest.raises(SdloraError, match=re.escape(facts["dialect"].removeprefix("!"))) as error:
        files.read(path)
    assert "no plain LoRA" in str(error.value) and any(key in str(error.value) for key in tensors)


def test_the_onetrainer_manifest_has_an_embedding_that_is_reported(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(serialised(manifest("sdxl-onetrainer")[1], {"ot_branch": "master"}))
    _, report = files.load_reported(path, short("sdxl"))
    assert report.embeddings == ("<ink>",) and len(report.surplus) == 2 and report.trainer == "OneTrainer" and report.family == "sdxl"


def test_a_manifests_layers_are_all_that_kohyas_trainer_adapts():
    for family in ("sd1", "sd2", "sdxl"):
        name = f"{family}-locon"
        layers = set(decode(manifest(name)[1]).layers)
        skipped = {layer for layer in named_layers(short(family)) if layer not in layers}
        assert all(re.search(r"time_embedding|add_embedding|text_projection", layer) for layer in skipped), sorted(skipped)[:5]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1-peft", "sdxl-diffusers", "sdxl-kohya-sgm", "refused-dora"])
def test_the_manifests_are_what_the_installed_libraries_write(name):
    spec = importlib.util.spec_from_file_location("write", FOLDER / "write.py")
    assert spec and spec.loader
    write = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(write)
    family, dialect, make = write.MANIFESTS[name]
    assert list(write.lines(family, dialect, make())) == (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("unet.x.oft_R.weight", "OFT or BOFT"),
        ("lora_unet_mid_block_attentions_0_proj_in.magnitude", "DoRA"),  # ai-toolkit's
        ("unet.x.boft_R", "OFT or BOFT"),
        ("unet.x.lora_magnitude_vector.default.weight", "DoRA"),
        ("unet.x.vera_lambda_b", "VeRA"),
        ("unet.x.lora_E", "AdaLoRA"),
        ("unet.x.lora_B.bias", "LoRA with biases"),
        ("unet:3:up", "cloneofsimo's LoRA without layer names"),
        ("lora_unet_x.bm.weight", "GLoRA"),
        ("model.diffusion_model.input_blocks.0.0.weight", None),
        ("text_model.encoder.layers.0.mlp.fc1.weight", None),
        ("first_stage_model.encoder.down.0.block.0.norm1.bias", None),
    ],
)
def test_kinds_of_which_there_is_no_manifest_are_known_by_their_keys_and_models_are_no_kind(key, kind):
    assert kind_of(key) == kind


SAMPLE = [name for name in READ if name in ("sd1-locon", "sd1-diffusers-old", "sdxl-kohya-sgm", "sdxl-peft", "sdxl-onetrainer")]


@pytest.mark.parametrize("name", SAMPLE)
def test_a_file_that_lost_any_one_matrix_is_refused_with_its_layer(name):
    tensors = manifest(name)[1]
    for key in [key for key in tensors if key.endswith(".weight")][::37]:
        found = split(key)
        assert found is not None
        with pytest.raises(SdloraError, match=re.escape(f"{found[0]} has ")):
            decode({other: tensor for other, tensor in tensors.items() if other != key})


@pytest.mark.parametrize("name", SAMPLE)
def test_a_file_with_renamed_keys_is_refused(name, tmp_path):
    """Renamed in part, so that keys fall out as unknown or lose their other half; renamed wholly, so that no layer fits."""
    facts, tensors = manifest(name)
    modules = short(facts["family"])
    last = sorted(tensors)[-1]
    half = {key.replace("lora", "l0ra") if key == last else key: tensor for key, tensor in tensors.items()}
    whole = {re.sub(r"(attn|resnets|layers|in_layers)", r"x\1", key): tensor for key, tensor in tensors.items()}
    for renamed in (half, whole):
        path = tmp_path / "a.safetensors"
        path.write_bytes(serialised(renamed, {}))
        with pytest.raises(SdloraError, match="has .* but no|belong to no layer|do not exist in|is no|cannot"):
            files.load(path, modules)


def test_a_file_in_two_dialects_is_read_where_they_hold_different_layers_and_refused_where_the_same():
    kohya, peft = manifest("sd1-locon")[1], manifest("sd1-peft")[1]
    unet = {key: tensor for key, tensor in kohya.items() if key.startswith("lora_unet")}
    text = {key: tensor for key, tensor in peft.items() if key.startswith("text_encoder.")}
    both = decode(unet | text)
    assert both.dialect == "kohya+peft" and len(both.layers) == len(unet) // 3 + len(text) // 2
    with pytest.raises(SdloraError, match="a file has to hold each layer once"):
        decode(kohya | text)
