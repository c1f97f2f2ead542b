"""Laws of base models on disk: folder = file = folder, what a file is, and one clear line for every file that is none."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import checkpoint_models
import pytest
import torch
from checkpoint_models import empty, hollow_file, true_tensors, write_hollow
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdlora import conditioning, models
from sdlora.checkpoints import configs, folder, hashes, identify, single, stored, tokenizer, unet, vae
from sdlora.checkpoints.stored import Contents, Stored
from sdlora.conditioning import Sizes
from sdlora.errors import SdloraError
from sdlora.families import EPSILON, FAMILIES, V
from sdlora.schedule import alphas_bar, zero_terminal

EVERY = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Nothing is written into the user's cache folder."""
    monkeypatch.setenv("SDLORA_CACHE", str(tmp_path / "hashes"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function family -> (folder in diffusers' layout, saved by diffusers; the single file that sdlora writes of it)."""
    root, done = tmp_path_factory.mktemp("checkpoints"), {}

    def make(family):
        if family not in done:
            source = checkpoint_models.make(root / family, family)
            single.export(models.opened(source), root / f"{family}.safetensors")
            done[family] = source, root / f"{family}.safetensors"
        return done[family]

    return make


@pytest.fixture
def changed(made, tmp_path):
    """A function (family, change, metadata) -> the family's single file after `change` of its dict of tensors; no header but `metadata`."""

    def make(family, change=lambda tensors: None, metadata=None):
        tensors = load_file(made(family)[1])
        change(tensors)
        save_file(tensors, tmp_path / "changed.safetensors", metadata)
        return tmp_path / "changed.safetensors"

    return make


@pytest.fixture
def hollow(tmp_path):
    """As `changed`, of the true size and with nothing but zeros: a file of holes, which takes no room on the disk."""

    def make(family, change=lambda tensors: None, metadata=None):
        return hollow_file(tmp_path / "changed.safetensors", family, change, metadata)

    return make


def assert_equal(one, other):
    assert (one.family, one.prediction, one.zeros_for_empty) == (other.family, other.prediction, other.zeros_for_empty)
    assert torch.equal(one.alphas_bar, other.alphas_bar)
    for mine, theirs in zip((*one.modules.values(), one.vae), (*other.modules.values(), other.vae), strict=True):
        a, b = mine.state_dict(), theirs.state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def outputs(components):
    """What the text encoders, the U-Net and the VAE make of fixed input."""
    hint = conditioning.encode_text(components, ["a photo of a cat", "a dog"])
    ids = conditioning.time_ids([Sizes((64, 64), (0, 0), (64, 64))] * 2)
    x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(5))
    said = conditioning.predict(components.unet, x, torch.tensor([400, 700]), hint, ids)
    return hint.context, said, components.vae.decode(x).sample, components.vae.encode(x[:, :3]).latent_dist.mean


@EVERY
def test_the_single_file_of_a_folder_loads_as_the_same_model_with_the_same_outputs(made, family):
    source, file = made(family)
    one, other = models.load(source), models.load(file)
    assert_equal(one, other)
    for mine, theirs in zip(outputs(one), outputs(other), strict=True):
        assert torch.equal(mine, theirs) and mine.abs().max() > 1e-3
    assert other.name == family and other.size == one.size == 64


@pytest.mark.slow  # importing the pipelines alone takes seconds
@EVERY
def test_the_folder_of_a_single_file_is_what_stock_diffusers_loads_as_the_first_folder(made, tmp_path, family):
    import diffusers

    source, file = made(family)
    folder.export(models.opened(file), tmp_path / "back")
    assert_equal(models.load(source), models.load(tmp_path / "back"))
    pipeline = getattr(diffusers, FAMILIES[family].pipeline).from_pretrained(tmp_path / "back", local_files_only=True)
    ours = models.load(source)
    for component, module in ours.modules.items():
        theirs = getattr(pipeline, component).state_dict()
        assert all(torch.equal(theirs[name], tensor) for name, tensor in module.state_dict().items())
    assert pipeline.tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert pipeline.scheduler.config.prediction_type == "epsilon"


@EVERY
def test_the_keys_of_the_single_file_are_those_of_the_published_ones(made, family):
    keys = stored.contents(made(family)[1]).tensors.keys()
    settings = configs.packaged(family)["unet"]
    assert unet.PREFIX + unet.name("conv_in.weight", settings) in keys and vae.PREFIX + "quant_conv.weight" in keys
    counts = {"sd1": 686 + 248 + 196, "sd2": 686 + 248 + 4 + 24 * 12 + 2, "sdxl": 1680 + 248 + 196 + 4 + 32 * 12 + 1}
    assert len(keys) == counts[family]


@EVERY
def test_family_and_prediction_are_found_without_any_header(hollow, family):
    found = models.opened(hollow(family))
    found.check()
    assert found.configs["unet"]["block_out_channels"] == configs.packaged(family)["unet"]["block_out_channels"]
    assert found.family.name == family and not found.surplus and not any(found.missing(name) for name in found.modules)
    assert found.prediction.kind == (None if family == "sd2" else EPSILON)


MARKS = [
    ("sdxl", {"v_pred": torch.zeros(0)}, {}, V, False),
    ("sdxl", {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, {}, V, True),
    ("sd1", {}, {"modelspec.prediction_type": "v"}, V, False),
    ("sd1", {}, {"modelspec.prediction_type": "epsilon"}, EPSILON, False),
    ("sd2", {}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, V, False),
    ("sd2", {}, {"modelspec.architecture": "stable-diffusion-v2-512"}, EPSILON, False),
]


@pytest.mark.parametrize("family, keys, header, prediction, zero_snr", MARKS)
def test_markers_tell_the_prediction_type(hollow, family, keys, header, prediction, zero_snr):
    found = models.opened(hollow(family, lambda tensors: tensors.update(keys), header)).prediction
    assert (found.kind, found.zero_snr) == (prediction, zero_snr)


def test_the_noise_of_a_zero_terminal_checkpoint_ends_in_pure_noise(changed):
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    file = changed("sd1", lambda tensors: tensors.update(marks))
    components = models.load(file)
    assert components.prediction == V and torch.equal(components.alphas_bar, zero_terminal(alphas_bar()))


def test_the_user_has_the_last_word_on_the_prediction_type_but_not_on_the_family(hollow):
    file = hollow("sdxl", lambda tensors: tensors.update(v_pred=torch.zeros(0)), {"modelspec.prediction_type": "epsilon"})
    with pytest.raises(SdloraError, match="contradicts itself: the key v_pred says v_prediction, modelspec.prediction_type says epsilon"):
        models.opened(file)
    assert models.opened(file, prediction=V).prediction == identify.Prediction(V, False, "as you said")
    assert models.opened(file, prediction=V, family="sdxl").family.name == "sdxl"
    with pytest.raises(SdloraError, match="is Stable Diffusion XL .sdxl. by its keys and shapes, not sd1"):
        models.opened(file, prediction=V, family="sd1")
    with pytest.raises(SdloraError, match="unknown prediction type 'v_predicton'; did you mean v_prediction"):
        models.opened(file, prediction="v_predicton")


def test_what_was_found_is_said_in_one_line(changed):
    said = []
    models.load(changed("sd1"), say=said.append)
    assert said == ["changed.safetensors: Stable Diffusion 1.x, predicts epsilon (no marker: Stable Diffusion 1.x's own)"]


class Says:
    """A U-Net that knows ε, and says ε or v of it."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, prediction):
        self.prediction, self.bar = prediction, alphas_bar()[-1]

    def __call__(self, x, t, encoder_hidden_states, return_dict):
        epsilon = x  # the best guess where almost all is noise; the picture guessed is a smooth one
        smooth = torch.linspace(-1, 1, x.shape[-1]).expand(x.shape)
        return (epsilon if self.prediction == EPSILON else self.bar.sqrt() * epsilon - (1 - self.bar).sqrt() * smooth,)


@pytest.mark.parametrize("prediction", [EPSILON, V])
def test_a_u_net_that_says_nothing_of_its_prediction_type_is_asked(prediction):
    from sdlora.checkpoints import measure

    assert measure.prediction(measure.alignment(Says(prediction), torch.zeros(1, 77, 8))) == prediction


@pytest.mark.slow
def test_the_embedded_base_is_found_to_predict_noise():
    from sdlora.checkpoints import measure

    components = models.load("emoji")
    context = conditioning.encode_text(components, [""]).context
    assert measure.alignment(components.unet, context) > 0.9


def test_sd_2_without_a_marker_is_measured_when_it_is_loaded(changed):
    said = []
    components = models.load(changed("sd2"), say=said.append)
    assert "measured: what it says of pure noise has a cosine of" in said[0]
    assert components.prediction in (EPSILON, V)
    assert components.size == (768 if components.prediction == V else 512)


def averaged(tensors, keep):
    for key in [key for key in tensors if key.startswith(unet.PREFIX)]:
        tensors[unet.averaged(key)] = tensors[key] * 2
        if not keep:
            del tensors[key]


def test_a_moving_average_beside_the_u_net_is_ignored_and_alone_is_used(made, changed):
    plain = models.load(made("sd1")[1]).unet.conv_in.weight
    both = models.opened(changed("sd1", lambda tensors: averaged(tensors, keep=True)))
    assert both.notes == ("holds a moving average (EMA) of the U-Net too, which is not used",) and not both.surplus
    assert torch.equal(both.weights["unet"]["conv_in.weight"].read(), plain)
    alone = models.opened(changed("sd1", lambda tensors: averaged(tensors, keep=False)))
    assert alone.notes == ("holds only the moving average (EMA) of the U-Net, which is used",)
    alone.check()
    assert torch.equal(alone.weights["unet"]["conv_in.weight"].read(), 2 * plain)


def test_older_files_without_the_text_models_level_are_read(made, changed):
    def older(tensors):
        for key in [key for key in tensors if ".transformer.text_model." in key]:
            tensors[key.replace(".transformer.text_model.", ".transformer.")] = tensors.pop(key)

    assert_equal(models.load(changed("sd1", older)), models.load(made("sd1")[1]))


def test_idle_tensors_are_no_surplus_and_others_are_named(hollow):
    idle = {"alphas_cumprod": torch.zeros(1000), "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    assert models.opened(hollow("sd1", lambda tensors: tensors.update(idle))).surplus == ()
    more = {"first_stage_model.more": torch.zeros(1)}
    found = models.opened(hollow("sd1", lambda tensors: tensors.update(more)))
    assert found.surplus == ("first_stage_model.more",)
    found.check()


def drop(prefix):
    def change(tensors):
        for key in [key for key in tensors if key.startswith(prefix)]:
            del tensors[key]

    return change


def renamed(old, new):
    def change(tensors):
        for key in list(tensors):
            tensors[key.replace(old, new)] = tensors.pop(key)

    return change


def channels(n):
    def change(tensors):
        key = unet.PREFIX + "input_blocks.0.0.weight"
        tensors[key] = empty(tensors[key].shape[0], n, 3, 3)

    return change


def extra(name, *shape):
    return lambda tensors: tensors.update({name: empty(*shape)})


def refiner(tensors):
    renamed("conditioner.embedders.1.model.", "conditioner.embedders.0.model.")(tensors)
    drop("conditioner.embedders.0.transformer.")(tensors)


LAST = unet.PREFIX + "output_blocks.8.0.skip_connection.weight"
REFUSED = [
    ("sd1", channels(9), "is an inpainting model .its U-Net takes 9 channels"),
    ("sd1", channels(8), "is an InstructPix2Pix model"),
    ("sd2", channels(5), "is a depth-to-image model"),
    ("sdxl", channels(9), "is an inpainting model"),
    ("sdxl", refiner, "is the Stable Diffusion XL refiner"),
    ("sdxl", extra("edm_mean", 4), "is Playground 2.5"),
    ("sdxl", extra("edm_vpred.sigma_max", 1), "is CosXL"),
    ("sd1", extra("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight", 2, 2), "is Stable Diffusion 3"),
    ("sd1", extra("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale", 2), "is Flux"),
    ("sd1", extra("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", 2, 2), "is an adapter"),
    ("sd1", extra("control_model.input_blocks.0.0.weight", 2), "is a ControlNet"),
    ("sd2", extra(unet.PREFIX + "label_emb.0.0.weight", 2, 2), "is Stable unCLIP"),
    ("sd1", drop("model.diffusion_model."), "has no U-Net: no key begins with model.diffusion_model"),
    ("sd1", renamed("model.diffusion_model.", "unet."), "has no U-Net: no key begins with"),
    ("sd1", renamed("model.diffusion_model.", ""), "is a U-Net alone"),
    ("sd1", drop("cond_stage_model."), "has a U-Net but not all text encoders"),
    ("sdxl", drop("conditioner.embedders.1."), "has a U-Net but not all text encoders"),
    ("sd1", drop("first_stage_model."), "has no VAE; give one"),
    ("sdxl", drop(LAST), r"lacks 1 of 1680 tensors of the unet: up_blocks.2.resnets.2.conv_shortcut.weight; it is cut off"),
    ("sd1", renamed("input_blocks.4.", "inputs.4."), r"(lacks|of Stable Diffusion 1.x; it is cut off)"),
    ("sd1", extra(unet.PREFIX + "odd.weight", 2), "has 1 tensors that the U-Net of Stable Diffusion 1.x does not have: .*odd.weight"),
    (
        "sd1",
        renamed("cond_stage_model.transformer.", "cond_stage_model.model."),
        "are of Stable Diffusion 2.x, but its U-Net projects with conv",
    ),
    ("sd1", extra("cond_stage_model.model.positional_embedding", 77, 8), "the files of two models were mixed"),
]


@pytest.mark.parametrize("family, change, message", REFUSED)
def test_what_is_no_whole_base_model_is_refused_by_name(hollow, family, change, message):
    with pytest.raises(SdloraError, match=message) as refusal:
        models.load(hollow(family, change))
    assert "\n" not in str(refusal.value)


def test_the_u_net_of_one_family_and_the_text_encoder_of_another_are_refused(tmp_path):
    def mixed(outer, inner, name):
        ours = {key: tensor for key, tensor in true_tensors(outer).items() if not key.startswith(unet.PREFIX)}
        theirs = {key: tensor for key, tensor in true_tensors(inner).items() if key.startswith(unet.PREFIX)}
        return write_hollow(tmp_path / name, ours | theirs, {})

    with pytest.raises(SdloraError, match="text encoders are of Stable Diffusion 1.x, but its U-Net projects with matrices"):
        models.opened(mixed("sd1", "sd2", "a.safetensors"))
    with pytest.raises(SdloraError, match="text encoders are of Stable Diffusion 1.x, but its U-Net takes sizes"):
        models.opened(mixed("sd1", "sdxl", "b.safetensors"))
    with pytest.raises(SdloraError, match="of Stable Diffusion XL, but its U-Net does not take sizes"):
        models.opened(mixed("sdxl", "sd2", "c.safetensors"))


def test_a_header_that_names_another_family_is_a_contradiction(hollow):
    with pytest.raises(SdloraError, match="is Stable Diffusion 1.x by its keys, and its header says stable-diffusion-xl-v1-base"):
        models.opened(hollow("sd1", metadata={"modelspec.architecture": "stable-diffusion-xl-v1-base"}))


DAMAGED = [
    (lambda data: data[: len(data) // 2], "is cut off: .* ends at byte"),
    (lambda data: data[:5], "is cut off or not a safetensors file"),
    (lambda data: b"", "is cut off or not a safetensors file"),
    (lambda data: struct.pack("<Q", 10**9) + data[8:], "is cut off or not a safetensors file"),
    (lambda data: data[:8] + b"!" + data[9:], "its header is not JSON"),
    (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is cut off or not a safetensors file"),
]


@pytest.mark.parametrize("damage, message", DAMAGED)
def test_a_damaged_file_is_one_clear_line(tmp_path, damage, message):
    save_file({f"{unet.PREFIX}{i}": torch.randn(100) for i in range(9)}, tmp_path / "good.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(damage((tmp_path / "good.safetensors").read_bytes()))
    with pytest.raises(SdloraError, match=message) as refusal:
        models.load(tmp_path / "bad.safetensors")
    assert "\n" not in str(refusal.value)


def test_a_ckpt_of_tensors_is_read_and_one_with_programs_in_it_is_not(made, tmp_path):
    tensors = load_file(made("sd2")[1])
    torch.save({"state_dict": tensors, "global_step": 875000, "epoch": 1}, tmp_path / "base.ckpt")
    assert models.opened(tmp_path / "base.ckpt", config=made("sd2")[0]).prediction.kind == EPSILON
    assert_equal(models.load(tmp_path / "base.ckpt"), models.load(made("sd2")[1]))
    torch.save({"state_dict": tensors, "callbacks": {Program(): 1}}, tmp_path / "evil.ckpt")
    with pytest.raises(SdloraError, match="holds more than tensors"):
        models.load(tmp_path / "evil.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "base.ckpt").read_bytes()[:10000])
    with pytest.raises(SdloraError, match="damaged"):
        models.load(tmp_path / "cut.ckpt")


class Program:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_precision_is_the_files_numbers_rounded_once(made, dtype):
    exact, rounded = models.load(made("sdxl")[1]), models.load(made("sdxl")[1], dtype=dtype)
    assert {module.dtype for module in rounded.modules.values()} == {dtype}
    assert rounded.vae.dtype == (torch.float32 if dtype == torch.float16 else dtype)  # SDXL's VAE overflows in fp16
    for name, tensor in exact.unet.state_dict().items():
        assert torch.equal(rounded.unet.state_dict()[name], tensor.to(dtype))
    assert not any(p.requires_grad for p in rounded.unet.parameters()) and not rounded.unet.training


def test_a_loaded_model_does_not_hang_on_its_file(made, tmp_path):
    file = shutil.copy(made("sd1")[1], tmp_path / "base.safetensors")
    components = models.load(file)
    before = components.unet.conv_in.weight.clone()
    Path(file).write_bytes(b"\0" * os.path.getsize(file))
    assert torch.equal(components.unet.conv_in.weight, before)


def test_another_vae_replaces_the_bases_own_and_changes_the_identity(made, tmp_path):
    base = models.load(made("sd1")[1])
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
        found = models.load(made("sd1")[1], vae=tmp_path / name)
        assert all(torch.equal(found.vae.state_dict()[key], tensor) for key, tensor in mine.items()), name
        assert torch.equal(found.unet.conv_in.weight, base.unet.conv_in.weight) and found.hash != base.hash
    with pytest.raises(SdloraError, match="is no VAE of Stable Diffusion"):
        save_file({"x": torch.zeros(1)}, tmp_path / "no.safetensors")
        models.load(made("sd1")[1], vae=tmp_path / "no.safetensors")
    with pytest.raises(SdloraError, match="is a VAE alone"):
        models.load(tmp_path / "vae.safetensors")
    assert models.load(made("sd1")[1], vae=made("sd1")[0]).hash != base.hash


def test_a_checkpoint_without_a_vae_is_whole_with_one_beside_it(made, changed):
    file = changed("sd1", drop("first_stage_model."))
    assert_equal(models.load(file, vae=made("sd1")[1]), models.load(made("sd1")[1]))


def test_a_folders_fp16_files_are_taken_when_asked_for_or_alone(made, tmp_path):
    source = shutil.copytree(made("sdxl")[0], tmp_path / "base")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        (file,) = (source / part).glob("*.safetensors")
        save_file({k: v.half() for k, v in load_file(file).items()}, file.with_name(f"{file.stem}.fp16.safetensors"))
    assert models.opened(source).weights["unet"]["conv_in.weight"].dtype == torch.float32
    assert models.opened(source, variant="fp16").weights["unet"]["conv_in.weight"].dtype == torch.float16
    for file in source.glob("*/*model.safetensors"):
        file.unlink()
    assert models.opened(source).weights["text_encoder_2"]["text_projection.weight"].dtype == torch.float16
    with pytest.raises(SdloraError, match="no weights of the variant ema"):
        models.opened(source, variant="ema")


def test_a_folder_in_shards_is_whole(made, tmp_path):
    source = shutil.copytree(made("sd1")[0], tmp_path / "base")
    whole = models.load(source)
    (source / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    whole.unet.save_pretrained(source / "unet", max_shard_size="4MB")
    assert len(list((source / "unet").glob("*-of-*"))) > 2
    assert_equal(models.load(source), whole)


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


def test_a_files_hash_is_its_sha256_and_remembered_on_disk_until_it_changes(tmp_path, monkeypatch):
    import hashlib

    monkeypatch.setenv("SDLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "WORTH", 0)
    hashes._remembered.cache_clear()
    file = tmp_path / "file"
    file.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert hashes.sha256([file]) == digest and hashes.short(digest) == digest[:10]
    written = tmp_path / "cache" / "hashes.json"
    assert list(json.loads(written.read_text()).values()) == [digest]
    hashes._remembered.cache_clear()
    monkeypatch.setattr(hashes, "_digest", lambda stamps: pytest.fail("hashed again"))
    assert hashes.sha256([file]) == digest
    monkeypatch.undo()
    monkeypatch.setenv("SDLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "WORTH", 0)
    file.write_bytes(b"changed")
    os.utime(file, ns=(1, 1))
    assert hashes.sha256([file]) == hashlib.sha256(b"changed").hexdigest()
    written.write_text("{ not json")
    hashes._remembered.cache_clear()
    assert hashes.sha256([file]) == hashlib.sha256(b"changed").hexdigest()


def test_the_tokenizer_of_the_package_is_clips():
    import hashlib

    assert hashlib.sha256(tokenizer.FILE.read_bytes()).hexdigest().startswith("924691ac288e5440")
    words = tokenizer.vocabulary()
    assert len(words) == 49408 and (words[tokenizer.START], words[tokenizer.END], words["!"]) == (49406, 49407, 0)
    clip = tokenizer.tokenizer()
    assert clip("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert clip("A  Photo of\na CAT").input_ids == clip("a photo of a cat").input_ids
    padded = clip("a", padding="max_length").input_ids
    assert len(padded) == 77 and set(padded[2:]) == {49407}
    assert set(tokenizer.tokenizer("!")("a", padding="max_length").input_ids[3:]) == {0}


def test_a_written_file_is_safetensors_own_layout(tmp_path):
    tensors = {"b": torch.arange(3), "a": torch.randn(2, 3).half(), "empty": torch.zeros(0), "one": torch.tensor(2.0)}
    kept = {name: Stored(tuple(t.shape), t.dtype, lambda t=t: t) for name, t in tensors.items()}
    stored.write(tmp_path / "x.safetensors", kept, {"k": "é"})
    back = load_file(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"k": "é"}
    read: Contents = stored.contents(tmp_path / "x.safetensors")
    assert all(torch.equal(read.tensors[name].read(), tensors[name]) for name in tensors) and read.metadata == {"k": "é"}


PEAK = """
import sys, torch
from pathlib import Path
from sdlora import models
import diffusers, transformers
def resident(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024
found = models.opened(sys.argv[1])
for module in found.modules.values(): module.state_dict()
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
kept = {name: found.loaded(name, "cpu", getattr(torch, sys.argv[2])) for name in found.modules}
weights = sum(p.nbytes for module in kept.values() for p in module.parameters())
print((resident("VmHWM") - before) / weights, weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux' /proc")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_loading_sd_1_at_its_true_size_needs_at_most_a_quarter_more_memory_than_the_weights(hollow, dtype):
    done = subprocess.run([sys.executable, "-c", PEAK, str(hollow("sd1")), dtype], capture_output=True, text=True, check=True)
    peak, weights = map(float, done.stdout.split())
    assert weights == 2 * (859_520_964 + 123_060_480 + 83_653_863) and 1 <= peak <= 1.25
