"""Laws of base models in folders, VAEs of their own, and Hub ids."""

import json
import shutil

import pytest
import torch
from checkpoint_models import assert_equal, drop
from safetensors.torch import load_file, save_file

from sdlora import models
from sdlora.checkpoints import vae
from sdlora.checkpoints.shards import weight_files
from sdlora.errors import SdloraError


def test_another_vae_replaces_the_bases_own_and_changes_the_identity(made, tmp_path):
    base = models.load(made("sd1")[0])
    other = load_file(made("sd1")[1])
    alone = {key.removeprefix(vae.PREFIX): tensor + 1 for key, tensor in other.items() if key.startswith(vae.PREFIX)}
    save_file(alone, tmp_path / "vae.safetensors")
    save_file({vae.PREFIX + key: tensor for key, tensor in alone.items()}, tmp_path / "prefixed.safetensors")
    mine = {name: tensor + 1 for name, tensor in base.vae.state_dict().items()}
    save_file(mine, tmp_path / "diffusers.safetensors")
    (tmp_path / "folder").mkdir()
    save_file(mine, tmp_path / "folder" / "diffusion_pytorch_model.safetensors")
    base.vae.save_config(tmp_path / "folder")
    for name in ("vae.safetensors", "prefixed.safetensors", "diffusers.safetensors", "folder"):
        weights = models.opened(made("sd1")[1], vae=tmp_path / name).weights
        assert all(torch.equal(weights["vae"][key].read(), tensor) for key, tensor in mine.items()), name
        assert torch.equal(weights["unet"]["conv_in.weight"].read(), base.unet.conv_in.weight)
    found = models.load(made("sd1")[0], vae=tmp_path / "vae.safetensors")
    assert torch.equal(found.vae.quant_conv.weight, mine["quant_conv.weight"]) and found.hash != base.hash
    with pytest.raises(SdloraError, match="is no VAE of Stable Diffusion"):
        save_file({"x": torch.zeros(1)}, tmp_path / "no.safetensors")
        models.load(made("sd1")[1], vae=tmp_path / "no.safetensors")
    with pytest.raises(SdloraError, match="is a VAE alone"):
        models.load(tmp_path / "vae.safetensors")
    save_file({"string_to_param": torch.zeros(1)}, tmp_path / "no.safetensors")
    with pytest.raises(SdloraError, match="is a textual inversion .an embedding.; give a VAE"):
        models.opened(made("sd1")[1], vae=tmp_path / "no.safetensors")


def test_a_checkpoint_without_a_vae_is_whole_with_one_beside_it(made, changed):
    file = changed("sd1", drop("first_stage_model."))
    assert_equal(models.load(file, vae=made("sd1")[1]), models.load(made("sd1")[1]))


def test_a_folders_fp16_files_are_taken_when_asked_for_or_alone(made, tmp_path):
    source = shutil.copytree(made("sd1")[0], tmp_path / "base")
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (source / part).glob("*.safetensors")
        save_file({k: v.half() for k, v in load_file(file).items()}, file.with_name(f"{file.stem}.fp16.safetensors"))
    assert models.opened(source).weights["unet"]["conv_in.weight"].dtype == torch.float32
    assert models.opened(source, variant="fp16").weights["unet"]["conv_in.weight"].dtype == torch.float16
    for file in source.glob("*/*model.safetensors"):
        file.unlink()
    assert models.opened(source).weights["text_encoder"]["final_layer_norm.weight"].dtype == torch.float16
    with pytest.raises(SdloraError, match="no weights of the variant ema"):
        models.opened(source, variant="ema")


def test_a_folder_in_shards_is_whole(made, tmp_path):
    source = shutil.copytree(made("sd1")[0], tmp_path / "base")
    whole = models.load(source)
    (source / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    whole.unet.save_pretrained(source / "unet", max_shard_size="4MB")
    shards = sorted((source / "unet").glob("*-of-*"))
    assert len(shards) > 2
    assert_equal(models.load(source), whole)
    shards[1].unlink()
    with pytest.raises(SdloraError, match=rf"unet lacks part 2 of {len(shards)} of its weights .*; copy the whole model"):
        models.opened(source)


N = "diffusion_pytorch_model"
FILES = [  # what is in the folder, the variant that is asked for, what is taken
    ([f"{N}.safetensors", f"{N}.bin", f"{N}.fp16.safetensors"], None, [f"{N}.safetensors"]),
    ([f"{N}.safetensors", f"{N}.fp16.safetensors"], "fp16", [f"{N}.fp16.safetensors"]),
    ([f"{N}.fp16.safetensors", f"{N}.non_ema.safetensors"], None, [f"{N}.fp16.safetensors"]),
    (["pytorch_model.fp16.bin"], None, ["pytorch_model.fp16.bin"]),
    (["model.fp16.bin", "model.fp32.safetensors"], None, ["model.fp32.safetensors"]),
    ([f"{N}-00002-of-00002.bin", f"{N}-00001-of-00002.bin"], None, [f"{N}-00001-of-00002.bin", f"{N}-00002-of-00002.bin"]),
    (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], "fp16", 2),
    (["model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors"], None, 2),
    (["model.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None, ["model.safetensors"]),
    (["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"], None, "lacks part 2 of 3 of its weights"),
    (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], None, "lacks part 2 of 2"),
    (["config.json", "model.onnx", "flax_model.msgpack", "model.safetensors.part"], None, "has no weights"),
    (["model.safetensors"], "fp16", "has no weights of the variant fp16"),
]


@pytest.mark.parametrize("names, variant, taken", FILES)
def test_the_files_of_a_component_are_chosen_by_their_names(tmp_path, names, variant, taken):
    for name in names:
        (tmp_path / name).touch()
    if isinstance(taken, str):
        with pytest.raises(SdloraError, match=taken):
            weight_files(tmp_path, variant)
        return
    assert [path.name for path in weight_files(tmp_path, variant)] == (taken if isinstance(taken, list) else names)


def changed_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


UNET, INDEX = "unet/config.json", "model_index.json"
CONTRADICTIONS = [
    (lambda f: changed_json(f / INDEX, _class_name="StableDiffusionXLImg2ImgPipeline"), "is the Stable Diffusion XL refiner"),
    (lambda f: changed_json(f / INDEX, _class_name="StableDiffusionInpaintPipeline"), "is an inpainting model"),
    (lambda f: changed_json(f / INDEX, _class_name="StableUnCLIPImg2ImgPipeline"), "is Stable unCLIP"),
    (lambda f: (f / INDEX).write_text("[1]"), "is JSON, but no table of settings"),
    (lambda f: (f / UNET).write_text("[]"), "is JSON, but no table of settings"),
    (lambda f: (f / "scheduler" / "scheduler_config.json").write_text("3"), "is JSON, but no table of settings"),
    (lambda f: changed_json(f / UNET, in_channels=9), "is an inpainting model"),
    (lambda f: changed_json(f / UNET, _class_name="UNetMotionModel"), "is of the class UNetMotionModel, not UNet2DConditionModel"),
    (lambda f: changed_json(f / "vae/config.json", _class_name="AutoencoderTiny"), "is of the class AutoencoderTiny, not AutoencoderKL"),
    (lambda f: changed_json(f / UNET, time_cond_proj_dim=256), "is a latent consistency model"),
    (lambda f: changed_json(f / UNET, block_out_channels="x"), "the configuration of the unet makes no UNet2DConditionModel"),
    (lambda f: changed_json(f / "text_encoder/config.json", hidden_size="x"), "the configuration of the text_encoder makes no CLIP"),
    (lambda f: changed_json(f / "text_encoder/config.json", hidden_size=128), "say 128 numbers a token, its U-Net takes 64"),
    (lambda f: changed_json(f / UNET, addition_embed_type="text_time"), "but its U-Net takes sizes: a mixture of two models"),
]


@pytest.fixture(scope="module")
def husk(made, tmp_path_factory):
    """The narrow sd1 folder without weights: what is refused here is refused before any is read."""
    return shutil.copytree(
        made("sd1")[0], tmp_path_factory.mktemp("husk") / "base", ignore=lambda _, names: [n for n in names if ".safe" in n]
    )


@pytest.mark.parametrize("change, message", CONTRADICTIONS)
def test_a_folder_of_another_model_or_with_damaged_settings_is_one_clear_line(husk, tmp_path, change, message):
    folder = shutil.copytree(husk, tmp_path / "base")
    for part in ("unet", "vae", "text_encoder"):
        (folder / part / "model.safetensors").touch()
    change(folder)
    with pytest.raises(SdloraError, match=message) as refusal:
        models.opened(folder)
    assert "\n" not in str(refusal.value)


def test_a_hub_id_is_found_in_the_local_cache_or_refused_with_what_to_do(made, tmp_path, monkeypatch):
    import huggingface_hub

    cache = tmp_path / "hub" / "models--me--base"
    shutil.copytree(made("sd1")[0], cache / "snapshots" / "0123")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123")
    find = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names: find(*names, cache_dir=tmp_path / "hub"))
    assert models.opened("me/base").family.name == "sd1"
    with pytest.raises(SdloraError, match="me/other is neither a file or folder here nor in the local Hugging Face cache"):
        models.load("me/other")


def test_a_file_that_is_not_there_is_said_so():
    with pytest.raises(SdloraError, match="there is no file nothing.safetensors"):
        models.load("nothing.safetensors")
