"""Laws of the single file's names: those that diffusers' own converters read, for every tensor, at the true size and narrow, both ways."""

import checkpoint_models
import pytest
import torch
from diffusers.loaders import single_file_utils as theirs

from sdlora import stored
from sdlora.checkpoints import build, clip, configs, folder, identify, single, unet, vae
from sdlora.checkpoints.links import given, taken
from sdlora.checkpoints.opened import KINDS, kinds, skeletons
from sdlora.families import FAMILIES
from sdlora.stored import Stored

COUNTS = {  # tensors and parameters of the true models, as they are known of the published ones
    "sd1": {"unet": (686, 859_520_964), "vae": (248, 83_653_863), "text_encoder": (196, 123_060_480)},
    "sd2": {"unet": (686, 865_910_724), "vae": (248, 83_653_863), "text_encoder": (372, 340_387_840)},
    "sdxl": {
        "unet": (1680, 2_567_463_684),
        "vae": (248, 83_653_863),
        "text_encoder": (196, 123_060_480),
        "text_encoder_2": (517, 694_659_840),
    },
}
EVERY = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def true_size():
    """A function family -> its networks at the true size, without memory."""
    made = {}

    def make(family):
        if family not in made:
            made[family] = skeletons(FAMILIES[family], configs.packaged(family))
        return made[family]

    return make


@EVERY
def test_the_packaged_configurations_are_the_true_models(true_size, family):
    for component, module in true_size(family).items():
        parameters = [p.numel() for p in module.parameters()]
        assert (len(parameters), sum(parameters)) == COUNTS[family][component], component


@EVERY
def test_every_tensor_of_the_u_net_is_where_diffusers_converter_looks_for_it(true_size, family):
    module, config = true_size(family)["unet"], configs.packaged(family)["unet"]
    links = unet.links(build.names(module), config)
    file = {link.theirs: link.ours for link in links}  # names stand for tensors: the converter only moves them
    assert len(file) == COUNTS[family]["unet"][0]
    assert theirs.convert_ldm_unet_checkpoint(file, dict(module.config)) == {link.ours: link.ours for link in links}


@EVERY
def test_every_tensor_of_the_vae_is_where_diffusers_converter_looks_for_it(true_size, family):
    module, config = true_size(family)["vae"], configs.packaged(family)["vae"]
    weights = {
        name: Stored(shape, torch.float32, lambda s=shape: torch.empty(s, device="meta")) for name, shape in build.shapes(module).items()
    }
    file = {key: tensor.read() for key, tensor in given(vae.links(weights, config), weights).items()}
    found = theirs.convert_ldm_vae_checkpoint(file, dict(module.config))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == build.shapes(module)
    attention = "first_stage_model.encoder.mid.attn_1.q.weight"
    assert file[attention].shape == (512, 512, 1, 1)


def random_like(module):
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) for name, shape in build.shapes(module).items()}
    return tensors, {name: Stored(tuple(t.shape), t.dtype, lambda t=t: t) for name, t in tensors.items()}


@pytest.mark.parametrize("family, component", [("sd2", "text_encoder"), ("sdxl", "text_encoder_2")])
def test_openclip_names_give_diffusers_converter_the_same_tensors(family, component):
    module = build.skeleton(kinds(FAMILIES[family])[component], checkpoint_models.narrow(family)[component])
    tensors, weights = random_like(module)
    prefix = identify.TEXTS[family][-1]
    file = {key: tensor.read() for key, tensor in given(clip.open_clip_links(weights, prefix), weights).items()}
    own = {name.removeprefix("text_model."): t for name, t in theirs.convert_open_clip_checkpoint(module, file, prefix=prefix).items()}
    assert own.keys() == tensors.keys() and all(torch.equal(own[name], tensors[name]) for name in tensors)


def test_the_first_text_encoders_have_transformers_names_under_a_prefix(true_size):
    for family, prefix in (("sd1", "cond_stage_model.transformer."), ("sdxl", "conditioner.embedders.0.transformer.")):
        names = build.names(true_size(family)["text_encoder"])
        file = {link.theirs: link.ours for link in single.text_links(FAMILIES[family], "text_encoder", names)}
        assert prefix + "text_model.encoder.layers.11.mlp.fc2.weight" in file
        found = theirs.convert_ldm_clip_checkpoint(file)
        assert {clip.plain(name): ours for name, ours in found.items()} == {name: name for name in names}


@EVERY
def test_a_files_tensors_and_a_components_are_each_others_inverse(family):
    settings = checkpoint_models.narrow(family)
    for component, module in skeletons(FAMILIES[family], settings).items():
        tensors, weights = random_like(module)
        links = single.links_of(FAMILIES[family], component, module, settings[component])
        file = given(links, weights)
        for link in links:
            assert file[link.theirs].read().shape == file[link.theirs].shape
            back = taken(link, file[link.theirs])
            assert back.shape == tensors[link.ours].shape and torch.equal(back.read(), tensors[link.ours]), link


@pytest.mark.parametrize(
    "ours, ldm",  # from the published checkpoints' keys
    [
        ("down_blocks.0.downsamplers.0.conv.bias", "input_blocks.3.0.op.bias"),
        ("down_blocks.2.attentions.1.proj_in.weight", "input_blocks.8.1.proj_in.weight"),
        ("mid_block.resnets.1.time_emb_proj.weight", "middle_block.2.emb_layers.1.weight"),
        ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
        ("up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
        ("up_blocks.3.resnets.2.conv_shortcut.weight", "output_blocks.11.0.skip_connection.weight"),
    ],
)
def test_the_u_nets_names_are_ldms(ours, ldm):
    assert unet.name(ours, configs.packaged("sd1")["unet"]) == ldm


def test_sdxls_upsamplers_stand_behind_attention_in_every_stage_that_has_one():
    config = configs.packaged("sdxl")["unet"]
    names = [unet.name(f"up_blocks.{i}.upsamplers.0.conv.weight", config) for i in (0, 1)]
    assert names == ["output_blocks.2.2.conv.weight", "output_blocks.5.2.conv.weight"]
    assert unet.name("add_embedding.linear_2.weight", config) == "label_emb.0.2.weight"


def test_the_average_of_a_tensor_has_its_name_without_dots():
    assert unet.averaged("model.diffusion_model.input_blocks.0.0.weight") == "model_ema.diffusion_modelinput_blocks00weight"


@EVERY
def test_the_widths_of_a_file_are_read_from_its_tensors(family):
    """All but the number of heads, which no tensor tells; and the narrow models have the one that is supposed."""
    settings = checkpoint_models.narrow(family)
    file = {}
    for component, module in skeletons(FAMILIES[family], settings).items():
        weights = random_like(module)[1]
        file |= given(single.links_of(FAMILIES[family], component, module, settings[component]), weights)
    found = single.fitted(file, FAMILIES[family], configs.packaged(family))
    for component in found:
        same = settings[component] | {"sample_size": None, "projection_dim": None}
        assert found[component] | {"sample_size": None, "projection_dim": None} == same


def test_the_classes_that_are_built_are_diffusers_own():
    import diffusers

    assert all(hasattr(diffusers, kind) for kind in KINDS.values())


def test_older_vaes_of_diffusers_are_read(tmp_path):
    module = build.skeleton("AutoencoderKL", checkpoint_models.narrow("sd1")["vae"])
    tensors, weights = random_like(module)
    aged = {
        vae.older(name): w.then((*w.shape, 1, 1), lambda t: t[:, :, None, None]) if vae.pointwise(name) else w
        for name, w in weights.items()
    }
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in aged and len(aged) == len(weights)
    stored.write(tmp_path / "diffusion_pytorch_model.safetensors", aged)
    found, surplus = folder.weights_of(module, [tmp_path / "diffusion_pytorch_model.safetensors"])
    assert not surplus and all(torch.equal(found[name].read(), tensors[name]) for name in tensors)


@EVERY
def test_the_narrow_models_have_every_tensor_of_the_true_ones(true_size, family):
    narrow = skeletons(FAMILIES[family], checkpoint_models.narrow(family))
    assert all(build.shapes(module).keys() == build.shapes(true_size(family)[component]).keys() for component, module in narrow.items())
