"""Laws of the file dialects: names and numbers survive, in both, for the small base and for the true SD 1.5."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from sdlora.apply import select
from sdlora.errors import SdloraError
from sdlora.formats import FORMATS, detect, kohya, peft
from sdlora.kinds.lora import Lora
from sdlora.layers import named_layers

EVERYTHING = ("attention", "feed_forward", "projections", "convolutions", "text_attention", "text_mlp")


@pytest.fixture(scope="module")
def sd15() -> dict[str, nn.Module]:
    """Stable Diffusion 1.5's U-Net and text encoder without weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64, attention_head_dim=8)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12))
    return {"unet": unet, "text_encoder": text}


@pytest.mark.parametrize("name", FORMATS)
def test_decode_is_the_inverse_of_encode(components, random_adapter, name):
    alphas = (0.1, 8.0, 1 / 3, 16.0)  # some that single precision does not hold
    adapter = random_adapter(components.modules, EVERYTHING, rank=lambda i: 1 + i % 7, alpha=lambda i: alphas[i % 4])
    dialect = FORMATS[name]
    tensors = dialect.encode(adapter.layers)
    assert detect(tensors) == name
    back = dialect.decode(tensors, named_layers(components.modules), dialect.header(adapter.layers))
    assert back.keys() == adapter.layers.keys()
    for layer, update in adapter.layers.items():
        assert torch.equal(back[layer].a, update.a) and torch.equal(back[layer].b, update.b) and back[layer].alpha == update.alpha


def test_kohya_names_have_an_exact_inverse_on_the_small_base(components):
    names = list(named_layers(components.modules))
    assert len({kohya.flat(name) for name in names}) == len(names)


def test_kohya_names_have_an_exact_inverse_on_sd15(sd15):
    names = list(named_layers(sd15))
    assert len({kohya.flat(name) for name in names}) == len(names)
    assert len(named_layers({"unet": sd15["unet"]})) == 282


def test_sd15_has_128_attention_linears_and_kohyas_default_192_and_72(sd15):
    assert len(select(sd15)) == 128
    assert len(select(sd15, ("attention", "feed_forward", "projections"))) == 192
    assert len(select(sd15, ("text_attention", "text_mlp"))) == 72


def test_kohya_names_are_the_ones_that_the_field_knows(sd15):
    flat = {kohya.flat(name) for name in select(sd15, EVERYTHING)}
    assert flat >= {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_down_blocks_0_attentions_0_proj_in",
        "lora_unet_up_blocks_1_upsamplers_0_conv",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te_text_model_encoder_layers_11_mlp_fc2",
    }


def test_a_kohya_alpha_is_a_single_precision_scalar_unless_that_would_change_it():
    assert kohya.exact(8.0).dtype == torch.float32 and kohya.exact(8.0).shape == ()
    assert kohya.exact(0.1).dtype == torch.float64 and kohya.exact(0.1).item() == 0.1


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_a_missing_or_zero_kohya_alpha_means_the_rank(alpha):
    tensors = {"lora_unet_x.lora_down.weight": torch.ones(3, 5), "lora_unet_x.lora_up.weight": torch.ones(7, 3)}
    if alpha is not None:
        tensors["lora_unet_x.alpha"] = torch.tensor(alpha)
    (update,) = kohya.decode(tensors, ["unet.x"]).values()
    assert update.alpha == 3.0


def test_the_first_text_encoder_by_its_sdxl_prefix_is_read_too():
    tensors = {"lora_te1_a_b.lora_down.weight": torch.ones(3, 5), "lora_te1_a_b.lora_up.weight": torch.ones(7, 3)}
    assert list(kohya.decode(tensors, ["text_encoder.a_b"])) == ["text_encoder.a_b"]


def test_a_peft_file_without_alphas_means_the_rank_and_text_encoder_names_are_read_with_and_without_their_level():
    for level in ("", "text_model."):
        key = f"text_encoder.{level}encoder.layers.0.mlp.fc1"
        ((name, update),) = peft.decode({key + peft.DOWN: torch.ones(3, 5), key + peft.UP: torch.ones(7, 3)}, []).items()
        assert name == "text_encoder.text_model.encoder.layers.0.mlp.fc1" and update.alpha == 3.0


@pytest.mark.parametrize("dialect", [kohya, peft])
def test_an_incomplete_pair_is_refused(dialect):
    tensors = dialect.encode({"unet.x": Lora(torch.ones(3, 5), torch.ones(7, 3), 1.0)})
    del tensors[next(key for key in tensors if key.endswith(dialect.UP))]
    with pytest.raises(SdloraError, match=f"x lacks {dialect.UP}"):
        dialect.decode(tensors, ["unet.x"])


def test_another_kind_of_adapter_is_refused_by_its_tensors_name():
    tensors = kohya.encode({"unet.x": Lora(torch.ones(3, 5), torch.ones(7, 3), 1.0)}) | {"lora_unet_x.dora_scale": torch.ones(7, 1)}
    with pytest.raises(SdloraError, match="lora_unet_x.dora_scale is not part of a plain LoRA"):
        kohya.decode(tensors, ["unet.x"])
    with pytest.raises(SdloraError, match="none of its 1 tensors is a LoRA matrix.*\n.*hada_w1_a"):
        detect(["lora_unet_x.hada_w1_a"])


def test_a_component_that_kohya_has_no_prefix_for_is_not_written():
    with pytest.raises(SdloraError, match="transformer.x cannot be written in kohya's format"):
        kohya.encode({"transformer.x": Lora(torch.ones(3, 5), torch.ones(7, 3), 1.0)})
