"""Laws of `sdlora base describe` and `convert`."""

import json
from functools import partial

import pytest
import torch
from checkpoint_models import hollow_file

from sdlora import models
from sdlora.checkpoints import folder, hashes
from sdlora.commands import base as command
from sdlora.errors import SdloraError


@pytest.fixture
def run(command_line):
    return command_line(command, "base")


@pytest.fixture
def hollow(tmp_path, monkeypatch):
    """A function (family, change) -> a single file of the true size with nothing but zeros. Gigabytes of zeros are not hashed here."""
    monkeypatch.setattr(hashes, "_digest", lambda stamps: "0123456789abcdef" * 4)
    monkeypatch.setenv("SDLORA_CACHE", str(tmp_path / "cache"))
    return partial(hollow_file, tmp_path / "base.safetensors")


def test_describe_tells_what_the_loaded_model_is(run, tiny_base, components):
    facts = json.loads(run("describe", tiny_base, "--json"))
    assert (facts["family"], facts["prediction"], facts["sha256"]) == ("sd1", "epsilon", components.hash)
    modules = {**components.modules, "vae": components.vae}
    assert [part["name"] for part in facts["components"]] == list(modules)
    for part in facts["components"]:
        parameters = [p.numel() for p in modules[part["name"]].parameters()]
        assert (part["tensors"], part["parameters"], part["precision"]) == (len(parameters), sum(parameters), "fp32")
        assert not part["missing"] and not part["misshapen"]
    assert facts["short_hash"] is None and not facts["surplus"]
    table = run("describe", tiny_base)
    assert f"{sum(p.numel() for p in components.unet.parameters()):,}" in table and "predict" in table


def test_describe_counts_a_lora_as_one_that_is_made_has(run, tiny_base, components, random_adapter):
    made = random_adapter(components.modules, ("attention", "convolutions", "text_mlp"), rank=3)
    facts = json.loads(run("describe", tiny_base, "--json", "--rank", 3, "--targets", "attention,convolutions, text_mlp"))["lora"]
    assert (facts["layers"], facts["parameters"]) == (len(made.layers), made.parameters)
    assert sum(own["parameters"] for own in facts["components"].values()) == made.parameters


@pytest.mark.parametrize("family, layers", [("sd1", {"unet": 192, "text_encoder": 72}), ("sdxl", {"unet": 722, "text_encoder": 72})])
def test_kohyas_default_layers_are_counted_as_kohya_counts_them(hollow, run, family, layers):
    targets = "attention,feed_forward,projections,text_attention,text_mlp"
    more = {"text_encoder_2": 192} if family == "sdxl" else {}
    facts = json.loads(run("describe", hollow(family), "--json", "--targets", targets + (",text_attention_2,text_mlp_2" if more else "")))
    assert {name: own["layers"] for name, own in facts["lora"]["components"].items()} == layers | more
    unet = next(part for part in facts["components"] if part["name"] == "unet")
    assert unet["parameters"] == {"sd1": 859_520_964, "sdxl": 2_567_463_684}[family] and unet["precision"] == "fp16"


def test_describe_names_what_is_missing_and_what_is_too_much(hollow, run):
    gone = "model.diffusion_model.out.2.weight"

    def damage(tensors):
        tensors["first_stage_model.odd"] = tensors.pop(gone)

    file = hollow("sd1", damage)
    facts = json.loads(run("describe", file, "--json"))
    assert facts["components"][0]["missing"] == ["conv_out.weight"] and facts["surplus"] == ["first_stage_model.odd"]
    said = run("describe", file)
    assert "missing in unet (1): conv_out.weight" in said and "surplus (1): first_stage_model.odd" in said
    assert "(A1111: 0123456789)" in said


def test_convert_goes_from_a_folder_to_a_file_and_back_without_loss(run, tiny_base, components, tmp_path):
    file, folder = tmp_path / "one.safetensors", tmp_path / "back"
    assert "one file" in run("convert", tiny_base, file)
    assert "diffusers" in run("convert", file, folder, "--config", tiny_base)
    back = models.load(file, config=tiny_base)
    other = models.opened(folder)
    for name, module in {**components.modules, "vae": components.vae}.items():
        mine = {**back.modules, "vae": back.vae}[name].state_dict()
        assert all(torch.equal(mine[key], tensor) for key, tensor in module.state_dict().items())
        assert not other.missing(name)
    words = components.tokenizers[0]("a cat").input_ids
    assert models.load(folder).tokenizers[0]("a cat").input_ids == back.tokenizers[0]("a cat").input_ids == words


def test_a_vocabulary_that_is_not_clips_needs_its_folder(run, tiny_base, tmp_path):
    run("convert", tiny_base, tmp_path / "one.safetensors", "--precision", "bf16")
    assert models.opened(tmp_path / "one.safetensors").weights["unet"]["conv_in.weight"].dtype == torch.bfloat16
    with pytest.raises(SdloraError, match="knows .* tokens, and CLIP's vocabulary has 49408; give a folder"):
        models.load(tmp_path / "one.safetensors")
    with pytest.raises(SdloraError, match="knows .* tokens, and CLIP's vocabulary has 49408; give a folder"):
        folder.export(models.opened(tmp_path / "one.safetensors"), tmp_path / "folder")  # it would have another model's tokenizer
    assert not (tmp_path / "folder").exists()


def test_convert_writes_over_nothing_and_says_what_it_can_write(run, tiny_base, tmp_path):
    (tmp_path / "there.safetensors").touch()
    with pytest.raises(SdloraError, match="there.safetensors is there already"):
        run("convert", tiny_base, tmp_path / "there.safetensors")
    with pytest.raises(SdloraError, match="give a name that ends in .safetensors, or a folder"):
        run("convert", tiny_base, tmp_path / "out.ckpt")
    with pytest.raises(SdloraError, match="unknown precision 'fp8'"):
        run("convert", tiny_base, tmp_path / "out", "--precision", "fp8")
