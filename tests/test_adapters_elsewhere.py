"""Adapters in other programs' hands, on models of the true topology: stock diffusers with PEFT reads ours, and we read LyCORIS's."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from sdlora import files, models
from sdlora.apply import TARGETS, fused, select, stacked
from sdlora.formats import FORMATS

pytestmark = pytest.mark.slow
FAMILIES = ("sd1", "sd2", "sdxl")


@torch.no_grad()
def outputs(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Of each component for a fixed input: the U-Net's (2, 4, 8, 8), the text encoders' last but one hidden states."""
    generator = torch.Generator().manual_seed(5)
    unet = modules["unet"]
    dtype = unet.dtype
    told = {}
    if unet.config.addition_embed_type == "text_time":
        told["text_embeds"] = torch.randn((2, 40), generator=generator).to(dtype)
        told["time_ids"] = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2, dtype=dtype)
    x = torch.randn((2, 4, 8, 8), generator=generator).to(dtype)
    context = torch.randn((2, 77, unet.config.cross_attention_dim), generator=generator).to(dtype)
    result = {"unet": unet(x, torch.tensor([400, 700]), context, added_cond_kwargs=told).sample}
    ids = torch.randint(0, 50, (2, 77), generator=generator)
    for name, module in modules.items():
        if name != "unet":
            result[name] = module(ids, output_hidden_states=True).hidden_states[-2]
    return result


def pipeline(folder, family):
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    if family == "sdxl":
        return StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)


def targets_of(family: str) -> list[str]:
    return [target for target in TARGETS if family == "sdxl" or not target.endswith("_2")]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_stock_diffusers_reads_every_target_of_every_family_and_computes_the_same(bases, loaded, random_adapter, tmp_path, family, format):
    """One α per file in kohya's format: diffusers 0.42 reads differing ones wrongly there. Few layers differ in rank and α from the
    others, since PEFT tries each pattern on each layer: a minute and more for SDXL where all do."""
    modules = loaded(family).modules
    rank, alpha = (4, 3.0) if format == "kohya" else (lambda i: 2 + (i % 40 == 0), lambda i: 1.5 + (i % 29 == 0))
    adapter = random_adapter(modules, targets_of(family), rank=rank, alpha=alpha, size=0.1)
    path = files.save(adapter, tmp_path / "a.safetensors", format)
    before = outputs(modules)
    with stacked(modules, [(files.load(path, modules), 1.0)]):
        ours = outputs(modules)
    pipe = pipeline(bases(family), family)
    pipe.load_lora_weights(tmp_path, weight_name=path.name)
    theirs = outputs({name: getattr(pipe, name) for name in modules})
    for name in modules:
        assert (ours[name] - before[name]).abs().max() > 0.05 * before[name].abs().max()
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5 * float(theirs[name].abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_locon_file_of_lycoris_does_here_what_it_does_there(loaded, tmp_path, family):
    from lycoris.config import PRESET
    from lycoris.kohya import create_network

    own = {name: deepcopy(module).double() for name, module in loaded(family).modules.items()}
    modules = deepcopy(own)
    PRESET["sd"] = {key: value for key, value in PRESET["full"].items() if key != "unet_target_module"}
    PRESET["sd"]["unet_target_module"] = ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]
    encoders = [module for name, module in modules.items() if name != "unet"]
    text = encoders if len(encoders) > 1 else encoders[0]
    settings = {"algo": "lora", "preset": "sd", "conv_dim": 2, "conv_alpha": 1}
    network = create_network(1.0, 4, 3.0, None, text, modules["unet"], **settings)
    network.apply_to(text, modules["unet"], True, True)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in network.named_parameters():
        if "lora_up" in name:
            nn.init.normal_(parameter, std=0.05, generator=generator)
    path = tmp_path / "locon.safetensors"
    network.save_weights(str(path), torch.float32, {"ss_network_module": "lycoris.kohya"})
    network.double()
    theirs = outputs(modules)

    adapter, report = files.load_reported(path, own)
    assert report.trainer == "kohya's sd-scripts with LyCORIS" and report.unmatched == report.surplus == ()
    assert set(select(own, targets_of(family))) < set(report.matched) and report.ranks.keys() == {2, 4}
    before = outputs(own)
    for how in (stacked, fused):
        with how(own, [(adapter, 1.0)]):
            ours = outputs(own)
        for name in own:
            assert (ours[name] - before[name]).abs().max() > 0.02 * before[name].abs().max()
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6 * float(theirs[name].abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_pefts_and_diffusers_own_writers_does_here_what_it_does_there(bases, tmp_path, family):
    """As diffusers' training scripts save: attention by diffusers' own names, the rest by PEFT's, and α in the header."""
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = pipeline(bases(family), family)
    own = models.load(bases(family)).modules
    parts = {name: getattr(pipe, name) for name in own}
    layers = [name.partition(".")[2] for name in select(own, targets_of(family)) if name.startswith("unet.")]
    for name, module in parts.items():
        targets = layers if name == "unet" else ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]
        patterns = {"conv1": 2} if name == "unet" else {"fc1": 5}
        module.add_adapter(LoraConfig(r=4, lora_alpha=3, alpha_pattern=patterns, target_modules=targets))
        for key, parameter in module.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(key)))
    states = {f"{n}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(m)) for n, m in parts.items()}
    type(pipe).save_lora_weights(tmp_path, **states, **_collate_lora_metadata(parts))
    theirs = outputs(parts)
    adapter, report = files.load_reported(tmp_path / "pytorch_lora_weights.safetensors", own)
    assert report.alphas.keys() == {2.0, 3.0, 5.0} and report.unmatched == ()
    with stacked(own, [(adapter, 1.0)]):
        ours = outputs(own)
    for name in own:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5 * float(theirs[name].abs().max()))
