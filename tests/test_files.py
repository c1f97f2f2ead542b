"""Laws of adapter files: strict to read, atomic and deterministic to write, and what others make of them."""

import hashlib
import itertools
import json
import os
import subprocess
import sys

import pytest
import safetensors
import safetensors.torch
import torch
from skeletons import true_size

from sdlora import files
from sdlora.adapter import Adapter
from sdlora.apply import select, stacked
from sdlora.errors import SdloraError
from sdlora.families import FAMILIES
from sdlora.kinds.lora import Lora
from sdlora.layers import named_layers

LINEAR = ("attention", "feed_forward", "projections", "text_attention", "text_mlp")
EVERYTHING = (*LINEAR, "convolutions", "shortcuts", "time_projections")
FORMATS = ("kohya", "diffusers", "peft")


@pytest.fixture
def adapter(components, random_adapter) -> Adapter:
    made = random_adapter(components.modules, ("attention", "text_mlp"), rank=4, alpha=2.0)
    metadata = files.header(made.layers, name="ink", base="emoji", triggers=("in ink",), settings={"steps": 24, "seed": 3})
    return Adapter(made.layers, metadata)


def equal(one: Adapter, two: Adapter) -> bool:
    pairs = [(one.layers[name], two.layers.get(name)) for name in one.layers]
    return one.layers.keys() == two.layers.keys() and all(
        torch.equal(x.a, y.a) and torch.equal(x.b, y.b) and x.alpha == y.alpha for x, y in pairs
    )


@pytest.mark.parametrize("format", FORMATS)
def test_load_gives_back_what_was_saved_without_being_told_the_format(components, random_adapter, tmp_path, format):
    rank, alpha = lambda i: 1 + i % 3, lambda i: 0.1 * (i % 4 + 1)
    adapter = random_adapter(components.modules, EVERYTHING, rank=rank, alpha=alpha, metadata={"k": "v"})
    path = files.save(adapter, tmp_path / "a.safetensors", format)
    back = files.load(path, components.modules)
    assert equal(adapter, back) and files.format_of(path) == format
    assert back.metadata["k"] == "v" == files.read_metadata(path)["k"]


@pytest.mark.slow
def test_the_same_adapter_gives_the_same_bytes_in_every_process(adapter, tmp_path):
    paths = {format: files.save(adapter, tmp_path / format, format) for format in FORMATS}
    again = "import sys; from sdlora.files import read, save; from sdlora.formats import FORMATS\n"
    again += "for f in FORMATS: save(read(sys.argv[1]), f'{sys.argv[2]}/{f}', f)"
    for seed in ("1", "2"):
        command = [sys.executable, "-c", again, str(paths["peft"]), str(tmp_path / seed)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        assert all((tmp_path / seed / format).read_bytes() == path.read_bytes() for format, path in paths.items())


def test_files_are_aligned_as_the_safetensors_format_asks(adapter):
    data = files.serialised({"x": torch.ones(3)}, {"b": "ä", "a": "1"})
    assert int.from_bytes(data[:8], "little") % 8 == 0
    assert torch.equal(safetensors.torch.load(data)["x"], torch.ones(3))


def test_the_header_has_the_names_that_the_ecosystem_reads(adapter, tmp_path):
    path = files.save(adapter, tmp_path / "ink.safetensors")
    metadata = files.read_metadata(path)
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2",
        "ss_sd_model_name": "emoji",
        "ss_base_model_version": "sd_v1",
        "ss_output_name": "ink",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.prediction_type": "epsilon",
        "modelspec.trigger_phrase": "in ink",
    }
    assert {key: metadata[key] for key in expected} == expected
    assert json.loads(metadata["ss_tag_frequency"]) == {"ink": {"in ink": 1}}
    assert json.loads(metadata["sdlora.settings"]) == {"steps": 24, "seed": 3}


def test_hashes_are_kohyas(adapter, tmp_path):
    """By kohya's procedure: serialise the tensors with the ss_… metadata, hash what follows the header."""
    path = files.save(adapter, tmp_path / "ink.safetensors")
    data, metadata = path.read_bytes(), files.read_metadata(path)
    body = data[8 + int.from_bytes(data[:8], "little") :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    tensors = safetensors.torch.load(data)
    theirs = safetensors.torch.save(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    assert metadata["sshs_model_hash"] == hashlib.sha256(theirs[8 + int.from_bytes(theirs[:8], "little") :]).hexdigest()
    assert metadata["sshs_legacy_hash"] == "e3b0c442"  # of nothing: the file is smaller than a mebibyte
    ordered = b"".join(tensors[key].numpy().tobytes() for key in sorted(tensors))
    assert metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(ordered).hexdigest()


def test_the_other_formats_header_does_not_stay_behind(adapter, components, tmp_path):
    peft = files.load(files.save(adapter, tmp_path / "p.safetensors", "peft"), components.modules)
    assert "lora_adapter_metadata" in peft.metadata
    kohya = files.save(peft, tmp_path / "k.safetensors", "kohya")
    assert "lora_adapter_metadata" not in files.read_metadata(kohya)
    assert kohya.read_bytes() == files.save(adapter, tmp_path / "direct.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_stock_diffusers_reads_the_file_and_computes_the_same(components, tiny_base, random_adapter, predict, tmp_path, format):
    from diffusers import StableDiffusionPipeline

    mixed = format != "kohya"  # diffusers 0.42 takes kohya files of one α per component only
    rank, alpha = (lambda i: 2 + i % 3, lambda i: 1.5 + i % 2) if mixed else (4, 3.0)
    adapter = random_adapter(components.modules, LINEAR, rank=rank, alpha=alpha)
    path = files.save(adapter, tmp_path / "a.safetensors", format)
    before = predict(components)
    with stacked(components.modules, [(files.load(path, components.modules), 1.0)]):
        ours = predict(components)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None, local_files_only=True)
    pipeline.load_lora_weights(tmp_path, weight_name=path.name)
    ids = pipeline.tokenizer(["a cat face", "a dog"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        theirs = pipeline.unet(x, torch.tensor([400, 700]), pipeline.text_encoder(ids)[0]).sample
    assert (ours - before).abs().max() > 0.05 * before.abs().max()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_file_of_another_model_is_refused_with_numbers_examples_and_a_reason(components, adapter, tmp_path):
    some = dict(list(adapter.layers.items())[:2])
    update = next(iter(some.values()))
    strange = {f"unet.down_blocks.9.x{i}": update for i in range(5)}
    path = files.save(Adapter({**some, **strange}), tmp_path / "strange.safetensors", "peft")
    with pytest.raises(SdloraError) as error:
        files.load(path, components.modules)
    said, shown = str(error.value), "unet.down_blocks.9.x0; unet.down_blocks.9.x1; unet.down_blocks.9.x2; …"
    assert said.startswith(f"5 of 7 layers of {path} do not exist in UNet2DConditionModel or CLIPTextModel ({shown}); ")
    assert "more layers" in said and "sdlora adapter describe" in said and "\n" not in said
    assert files.load(path, components.modules, allow_missing=True).layers.keys() == some.keys()


def of_family(family: str, targets=("attention",)) -> Adapter:
    """Zeros of rank 1 in the shapes of the true family."""
    modules = true_size(family)
    layers = named_layers(modules)

    def zeros(shape) -> Lora:
        out, *rest = shape
        return Lora(torch.zeros(1, *rest), torch.zeros(out, 1, *(1 for _ in rest[1:])), 1.0)

    return Adapter({name: zeros(layers[name].weight.shape) for name in select(modules, targets)})


@pytest.mark.parametrize(("adapter", "base"), list(itertools.permutations(("sd1", "sd2", "sdxl"), 2)))
def test_an_adapter_on_a_base_of_another_family_is_told_both_families(tmp_path, adapter, base):
    for format in FORMATS:
        path = files.save(of_family(adapter), tmp_path / f"{format}.safetensors", format)
        for allow_missing in (False, True):  # that is never a choice of the user's
            with pytest.raises(SdloraError) as error:
                files.load(path, true_size(base), allow_missing=allow_missing)
            first = f"{path} is an adapter for {FAMILIES[adapter].title}, this base model is {FAMILIES[base].title}: "
            assert str(error.value).startswith(first) and "\n" not in str(error.value)


def test_an_sdxl_file_and_one_for_a_transformer_are_called_so_on_the_small_base(components, tmp_path):
    path = files.save(of_family("sdxl"), tmp_path / "xl.safetensors")
    with pytest.raises(SdloraError, match="is an adapter for Stable Diffusion XL, this base model is not Stable Diffusion XL"):
        files.load(path, components.modules)
    flux = {f"lora_unet_double_blocks_0_img_attn_proj.lora_{end}.weight": torch.ones(2, 2) for end in ("up", "down")}
    safetensors.torch.save_file(flux, tmp_path / "flux.safetensors")
    with pytest.raises(SdloraError, match="is an adapter for a diffusion transformer"):
        files.load(tmp_path / "flux.safetensors", components.modules)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_report_has_components_ranks_alphas_dialect_family_and_what_fits(family, tmp_path):
    layers = dict(list(of_family(family, ("attention", "text_mlp")).layers.items()))
    layers["unet.down_blocks.9.proj_in"] = Lora(torch.ones(3, 5), torch.ones(7, 3), 2.0)
    path = files.save(Adapter(layers, {"ss_network_module": "networks.lora"}), tmp_path / "a.safetensors", "peft")
    tensors = safetensors.torch.load(path.read_bytes()) | {"emb_params": torch.ones(1)}
    path.write_bytes(files.serialised(tensors, files.read_metadata(path)))
    with pytest.raises(SdloraError, match="1 of .* layers"):
        files.load(path, true_size(family))
    adapter, report = files.load_reported(path, true_size(family), allow_missing=True)
    attention, text = (560, 24) if family == "sdxl" else (128, 24 if family == "sd1" else 46)
    assert report.components == {"text_encoder": text, "unet": attention + 1}
    assert report.ranks == {1: attention + text, 3: 1} and report.alphas == {1.0: attention + text, 2.0: 1}
    assert report.unmatched == ("unet.down_blocks.9.proj_in",) and len(report.matched) == attention + text == len(adapter.layers)
    assert (report.dialect, report.family, report.trainer, report.unknown) == ("peft", family, "kohya's sd-scripts", ("emb_params",))
    assert json.loads(json.dumps(report.facts()))["components"] == dict(report.components)


def test_tensors_of_unknown_meaning_are_refused_unless_parts_may_be_missing(adapter, components, tmp_path):
    path = files.save(adapter, tmp_path / "a.safetensors")
    path.write_bytes(files.serialised(safetensors.torch.load(path.read_bytes()) | {"emb_params": torch.ones(1)}, {}))
    with pytest.raises(SdloraError, match="1 of its tensors belong to no layer of a LoRA, for example emb_params"):
        files.load(path, components.modules)
    assert equal(files.load(path, components.modules, allow_missing=True), adapter)


def test_alpha_is_read_from_the_config_beside_pefts_own_file(components, tmp_path):
    """The folder that PEFT's save_pretrained writes, read with ΔW as PEFT merges it."""
    from copy import deepcopy

    from peft import LoraConfig, get_peft_model

    unet = components.unet
    layers = r".*(attn1\.to_q|mid_block.*proj_in)"
    model = get_peft_model(deepcopy(unet), LoraConfig(r=4, lora_alpha=3, alpha_pattern={"proj_in": 5}, target_modules=layers))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    adapter = files.load(tmp_path / "adapter_model.safetensors", components.modules)
    merged, plain = named_layers({"unet": model.merge_and_unload()}), named_layers({"unet": unet})
    assert len(adapter.layers) == sum(name.endswith("attn1.to_q") for name in plain) + 1
    assert {update.alpha for update in adapter.layers.values()} == {3.0, 5.0}
    for name, update in adapter.layers.items():
        theirs = merged[name].weight - plain[name].weight
        torch.testing.assert_close(update.delta(plain[name].weight), theirs, rtol=1e-5, atol=1e-6)


def test_layers_of_another_shape_are_refused(components, adapter, tmp_path):
    wide = {name: Lora(torch.ones(2, 768), torch.ones(320, 2), 1.0) for name in adapter.layers if "attn2.to_k" in name}
    path = files.save(Adapter(wide), tmp_path / "wide.safetensors")
    with pytest.raises(SdloraError, match=r"(?s)7 of 7 layers of .*wide.* another shape.*320 × 768 in the adapter, \d+ × 128 in the model"):
        files.load(path, components.modules)


def test_matrices_of_a_linear_and_of_a_1x1_convolution_stand_for_each_other(components, random_adapter, tmp_path):
    adapter = random_adapter(components.modules, ("attention", "projections"))
    other = {
        name: Lora(u.a[..., None, None], u.b[..., None, None], u.alpha) if u.a.dim() == 2 else Lora(u.a.flatten(1), u.b.flatten(1), u.alpha)
        for name, u in adapter.layers.items()
    }
    path = files.save(Adapter(other), tmp_path / "a.safetensors")
    assert equal(files.load(path, components.modules), adapter)


def broken(folder, adapter) -> dict[str, tuple]:
    whole = files.save(adapter, folder / "whole.safetensors").read_bytes()
    odd = safetensors.torch.save({"lora_unet_x.lora_down.weight": torch.ones(3, 5), "lora_unet_x.lora_up.weight": torch.ones(7, 4)})
    return {
        "missing": (None, "does not exist"),
        "truncated": (whole[:-100], "is cut off: .* ends at byte"),
        "cut in the header": (whole[:50], r"\(50 bytes\) is cut off"),
        "empty": (b"", "is empty"),
        "text": (b"<html>404</html>" * 9, "is a web page"),
        "a pickle": (b"PK\x03\x04" + bytes(500), "is a pickle .*, whatever its name says"),
        "a U-Net": (safetensors.torch.save({"conv_in.weight": torch.ones(3)}), "it is a U-Net, not an adapter"),
        "something": (safetensors.torch.save({"x": torch.ones(3)}), "none of its 1 tensors is a LoRA matrix .*, but for example x"),
        "nothing": (safetensors.torch.save({}), "it holds no tensors"),
        "odd shapes": (odd, r"no pair of LoRA matrices: down \(3, 5\) float32, up \(7, 4\)"),
    }


def test_broken_files_are_one_clear_error(components, adapter, tmp_path):
    for name, (content, message) in broken(tmp_path, adapter).items():
        path = tmp_path / f"{name}.safetensors"
        if content is not None:
            path.write_bytes(content)
        for reader in (lambda p: files.load(p, components.modules), files.read, files.format_of):
            with pytest.raises(SdloraError, match=message) as error:
                reader(path)
            assert str(path) in str(error.value)
    with pytest.raises(SdloraError, match="is a folder"):
        files.read(tmp_path)


def test_a_failed_save_leaves_the_old_file_and_no_other(adapter, tmp_path, monkeypatch):
    path = files.save(adapter, tmp_path / "a.safetensors")
    before = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.save(Adapter(dict(list(adapter.layers.items())[:1])), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_unknown_format_and_an_empty_adapter_are_not_written(adapter, tmp_path):
    with pytest.raises(SdloraError, match="unknown adapter format 'khoya'; did you mean kohya?"):
        files.save(adapter, tmp_path / "a.safetensors", "khoya")
    with pytest.raises(SdloraError, match="without layers"):
        files.save(Adapter({}), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
