"""Laws of loading a base model: what is computed with its parts, its identity, and clear words for a wrong folder."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from sdlora import conditioning, latents, models
from sdlora.errors import SdloraError
from sdlora.layers import named_layers
from sdlora.schedule import alphas_bar


def test_the_schedule_is_diffusers_own_and_falls_from_one_towards_zero(components):
    from diffusers import DDIMScheduler

    for kind in ("scaled_linear", "linear"):
        theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=kind).alphas_cumprod
        assert torch.equal(alphas_bar(kind=kind), theirs)
    bar = components.alphas_bar
    assert bar.shape == (1000,) and bar.dtype == torch.float32 and (bar.diff() < 0).all()
    sigma = ((1 - bar.double()) / bar.double()).sqrt()
    assert sigma[-1].item() == pytest.approx(14.6146, abs=1e-3) and sigma[0].item() == pytest.approx(0.0292, abs=1e-4)


def test_an_unknown_schedule_names_the_valid_ones():
    with pytest.raises(SdloraError, match="unknown beta schedule 'linaer'; did you mean linear?"):
        alphas_bar(kind="linaer")


def test_latents_are_a_quarter_of_the_pixels_and_text_is_77_tokens(components):
    images = torch.rand(2, 3, 64, 32) * 2 - 1
    latent = latents.encode_image(components, images)
    assert latent.shape == (2, 4, 16, 8) and (components.factor, components.size) == (4, 64)
    decoded = latents.decode(components, latent)
    assert decoded.shape == images.shape and decoded.abs().max() <= 1
    hint = conditioning.encode_text(components, ["a cat", "a dog " * 100])
    assert hint.context.shape == (2, 77, 128) and hint.pooled is None
    torch.testing.assert_close(hint[:1].context, conditioning.encode_text(components, ["a cat"]).context)


def test_latents_are_scaled_by_the_configs_factor(components):
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        mean = components.vae.encode(images).latent_dist.mean
    torch.testing.assert_close(latents.encode_image(components, images), mean * components.vae.config.scaling_factor)


def test_the_components_are_frozen_and_in_the_wanted_precision(tiny_base):
    components = models.load(tiny_base, dtype=torch.bfloat16)
    for module in (components.unet, *components.text_encoders, components.vae):
        assert not module.training and not any(p.requires_grad for p in module.parameters())
        assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert components.dtype == torch.bfloat16 and components.device.type == "cpu"


def test_the_hash_is_of_the_weights_alone(tiny_base, components, tmp_path):
    copy = shutil.copytree(tiny_base, tmp_path / "copy")
    (copy / "model_index.json").write_text((copy / "model_index.json").read_text() + "\n")
    assert models.base_hash(copy) == components.hash and len(components.hash) == 64
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert models.base_hash(copy) != components.hash


def test_the_skeleton_has_the_models_layers_and_no_weights(tiny_base, components):
    skeleton, whole = named_layers(models.skeleton(tiny_base)), named_layers(components.modules)
    assert {name: layer.weight.shape for name, layer in skeleton.items()} == {name: layer.weight.shape for name, layer in whole.items()}
    assert all(layer.weight.is_meta for layer in skeleton.values())


def test_a_name_that_is_no_base_model_is_refused_with_the_nearest():
    with pytest.raises(SdloraError, match="unknown base model 'emojy'.*did you mean emoji?"):
        models.load("emojy")


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
        (lambda f: change_json(f / "model_index.json", _class_name="FluxPipeline"), "is a FluxPipeline"),
        (lambda f: shutil.rmtree(f / "vae"), "has no folder vae/"),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 99), "is cut off or not a safetensors file"),
        (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "cannot read .*scheduler_config.json"),
        (lambda f: (f / "scheduler" / "scheduler_config.json").write_text("{"), "is not valid JSON"),
        (lambda f: change_json(f / "scheduler" / "scheduler_config.json", prediction_type="sample"), "unknown prediction_type 'sample'"),
    ],
)
def test_a_damaged_folder_is_one_clear_error(tiny_base, tmp_path, damage, message):
    folder = shutil.copytree(tiny_base, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(SdloraError, match=message):
        models.load(folder)


def test_importing_sdlora_loads_nothing_heavy():
    code = "import sdlora, sys; assert not {'torch', 'diffusers', 'pydantic', 'numpy'} & set(sys.modules); print(sdlora.__version__)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_every_public_name_is_there():
    import sdlora

    for name in sdlora.__all__:
        assert getattr(sdlora, name) is not None
    assert set(sdlora.__all__) <= set(dir(sdlora))
    with pytest.raises(AttributeError):
        sdlora.nothing  # noqa: B018


@pytest.mark.parametrize(
    "kind, family, prediction", [("sd1", "sd1", "epsilon"), ("sd2_v", "sd2", "v_prediction"), ("sdxl", "sdxl", "epsilon")]
)
def test_the_family_is_found_and_all_its_parts_are_loaded(bases, loaded, kind, family, prediction):
    components = loaded(kind)
    assert (components.family, components.prediction, components.factor) == (family, prediction, 8)
    encoders = ["text_encoder", "text_encoder_2"] if family == "sdxl" else ["text_encoder"]
    assert list(components.modules) == ["unet", *encoders] == list(models.skeleton(bases(kind)))
    assert len(components.tokenizers) == len(components.text_encoders) == len(encoders)
    whole, skeleton = named_layers(components.modules), named_layers(models.skeleton(bases(kind)))
    assert {name: layer.weight.shape for name, layer in skeleton.items()} == {name: layer.weight.shape for name, layer in whole.items()}


def test_zero_terminal_snr_is_diffusers_own_and_contradicts_epsilon(bases, tmp_path):
    from diffusers.schedulers.scheduling_euler_discrete import rescale_zero_terminal_snr

    folder = shutil.copytree(bases("sd2_v"), tmp_path / "base")
    change_json(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    bar, plain = models.load(folder).alphas_bar, models.load(bases("sd2_v")).alphas_bar
    betas = 1 - plain.double() / torch.cat([torch.ones(1).double(), plain[:-1].double()])
    theirs = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    torch.testing.assert_close(bar.double(), theirs, rtol=0, atol=1e-6)
    assert bar[-1] == 0 and bar[0] == pytest.approx(plain[0].item(), rel=1e-6)
    change_json(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    with pytest.raises(SdloraError, match="rescale_betas_zero_snr contradicts prediction_type epsilon"):
        models.load(folder)
