"""What is no base model that sdlora knows is refused by name, in one line."""

import re

import pytest
from checkpoint_models import drop, empty, extra, renamed, true_tensors, write_hollow

from sdlora import models
from sdlora.checkpoints import unet
from sdlora.errors import SdloraError


def channels(n):
    def change(tensors):
        key = unet.PREFIX + "input_blocks.0.0.weight"
        tensors[key] = empty(tensors[key].shape[0], n, 3, 3)

    return change


def refiner(tensors):
    renamed("conditioner.embedders.1.model.", "conditioner.embedders.0.model.")(tensors)
    drop("conditioner.embedders.0.transformer.")(tensors)


def shortened(**depths):
    """The transformer at each place of the U-Net's way down cut to so many blocks: b4=2 is input_blocks.4; 0 is none."""

    def change(tensors):
        for key in list(tensors):
            found = re.match(re.escape(unet.PREFIX) + r"input_blocks\.(\d+)\.1\.transformer_blocks\.(\d+)\.", key)
            if found and int(found[2]) >= depths.get(f"b{found[1]}", 99):
                del tensors[key]

    return change


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
    ("sd2", extra("noise_augmentor.data_mean", 2), "is Stable unCLIP"),
    ("sd2", extra(unet.PREFIX + "input_blocks.1.0.time_stack.in_layers.0.weight", 2), "is Stable Video Diffusion"),
    ("sd1", extra(unet.PREFIX + "time_embed.cond_proj.weight", 2), "is a latent consistency model"),
    ("sd1", extra(unet.PREFIX + "input_blocks.1.1.proj_in.weight.absmax", 2), "is quantised by bitsandbytes"),
    ("sdxl", extra("scaled_fp8", 2), "is in scaled fp8"),
    ("sdxl", shortened(b7=4, b8=4), "is SSD-1B, a distilled Stable Diffusion XL: its U-Net has fewer layers"),
    ("sdxl", shortened(b4=1, b5=1, b7=2, b8=2), "is Segmind Vega, a distilled"),
    ("sdxl", shortened(b5=0, b7=5, b8=0), "is KOALA 700M, a distilled"),
    ("sdxl", shortened(b5=0, b7=6, b8=0), "is KOALA 1B, a distilled"),
    ("sd1", shortened(b2=0, b5=0, b8=0), "is a distilled Stable Diffusion 1.x .BK-SDM"),
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
