"""Laws of the file dialects: names and numbers survive, in each that is written, for the small base and for the true families."""

import json
import time

import pytest
import torch
from skeletons import true_size

from sdlora.checkpoints import configs, unet
from sdlora.errors import SdloraError
from sdlora.formats import FORMATS, decode, diffusers, kohya, names, peft, split
from sdlora.formats.alphas import CONFIG
from sdlora.kinds.lora import Lora
from sdlora.layers import finite, named_layers

FAMILIES = ("sd1", "sd2", "sdxl")
LAYER = "unet.conv_in"


def pair(name: str = "lora_unet_conv_in") -> dict[str, torch.Tensor]:
    return {f"{name}.lora_down.weight": torch.ones(3, 5), f"{name}.lora_up.weight": torch.ones(7, 3)}


def everything(modules, family=None) -> dict[str, Lora]:
    """A random update of rank 1 to 3 for every layer there is; α of all kinds, some that single precision does not hold."""
    alphas, generator, result = (0.1, 8.0, 1 / 3, 16.0), torch.Generator().manual_seed(0), {}
    for i, (name, layer) in enumerate(named_layers(modules).items()):
        out, *rest = layer.weight.shape
        a = torch.randn((1 + i % 3, *rest), generator=generator)
        result[name] = Lora(a, torch.randn((out, 1 + i % 3, *(1 for _ in rest[1:])), generator=generator), alphas[i % 4])
    return result


def same(one: dict[str, Lora], two: dict[str, Lora]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(u.a, two[n].a) and torch.equal(u.b, two[n].b) and u.alpha == two[n].alpha for n, u in one.items()
    )


@pytest.mark.parametrize("format", FORMATS)
def test_decode_is_the_inverse_of_encode_on_the_small_base(components, format):
    layers = everything(components.modules)
    dialect = FORMATS[format]
    found = decode(dialect.encode(layers, None), dialect.header(layers))
    assert same(layers, found.layers) and found.dialect == format and found.surplus == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_is_the_inverse_of_encode_for_every_layer_of_the_true_families(family):
    layers = everything(true_size(family))
    assert len(layers) == {"sd1": 354, "sd2": 420, "sdxl": 1059}[family]
    for format, dialect in FORMATS.items():
        found = decode(dialect.encode(layers, family), dialect.header(layers))
        assert same(layers, found.layers) and found.surplus == ()
        assert found.dialect == ("kohya-sgm" if (format, family) == ("kohya", "sdxl") else format)


@pytest.mark.parametrize("family", FAMILIES)
def test_flat_names_and_ldms_have_an_exact_inverse(family):
    for name in named_layers(true_size(family)):
        path = name.partition(".")[2]
        assert names.dotted(names.flat(path)) == path
        if name.startswith("unet."):
            assert names.from_ldm(unet.name(path + ".weight", configs.packaged(family)["unet"]).removesuffix(".weight")) == path


def test_ldms_names_of_sdxl_are_those_of_the_checkpoints():
    config = configs.packaged("sdxl")["unet"]
    for name in named_layers({"unet": true_size("sdxl")["unet"]}):
        path = name.removeprefix("unet.")
        assert names.to_ldm(path) == unet.name(path + ".weight", config).removesuffix(".weight")


def test_kohya_names_are_the_ones_that_the_field_knows():
    assert {kohya.flat(name) for name in named_layers(true_size("sd1"))} >= {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_down_blocks_0_attentions_0_proj_in",
        "lora_unet_up_blocks_1_upsamplers_0_conv",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te_text_model_encoder_layers_11_mlp_fc2",
    }
    assert {kohya.flat(name, "sdxl") for name in named_layers(true_size("sdxl"))} >= {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_middle_block_1_transformer_blocks_9_ff_net_2",
        "lora_unet_output_blocks_0_1_proj_in",
        "lora_unet_output_blocks_2_2_conv",
        "lora_unet_output_blocks_8_0_skip_connection",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_31_self_attn_out_proj",
    }


@pytest.mark.parametrize(
    ("key", "layer"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        ("lora_te2_text_projection.alpha", "text_encoder_2.text_projection"),
        ("lycoris_down_blocks_0_resnets_0_conv1.alpha", "unet.down_blocks.0.resnets.0.conv1"),
        ("lora_unet_output_blocks_2_1_conv.lora_up.weight", "unet.up_blocks.0.upsamplers.0.conv"),  # SD 1.x by LDM's names
        ("lora_unet.mid_block.attentions.0.proj_in.lora_down.weight", "unet.mid_block.attentions.0.proj_in"),  # OneTrainer's own folder
        ("lora_te1.text_model.encoder.layers.0.mlp.fc1.alpha", "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        ("unet.output_blocks.2.2.conv.lora_up.weight", "unet.up_blocks.0.upsamplers.0.conv"),  # OneTrainer's SD 1.x, as if of XL
        ("unet.output_blocks.8.2.conv.lora_up.weight", "unet.up_blocks.2.upsamplers.0.conv"),
        ("unet.label_emb.0.2.lora_down.weight", "unet.add_embedding.linear_2"),
        ("unet.input_blocks.10.0.in_layers.2.lora_down.weight", "unet.down_blocks.3.resnets.0.conv1"),
        ("clip_l.text_model.encoder.layers.3.self_attn.out_proj.alpha", "text_encoder.text_model.encoder.layers.3.self_attn.out_proj"),
        ("clip_g.text_projection.lora_down.weight", "text_encoder_2.text_projection"),
        ("lora_unet_input_blocks_1_0_emb_layers_1.alpha", "unet.down_blocks.0.resnets.0.time_emb_proj"),  # ai-toolkit's SDXL
        ("lora_unet_input_blocks_4_0_skip_connection.lora_up.weight", "unet.down_blocks.1.resnets.0.conv_shortcut"),
        ("lora_unet_input_blocks_3_0_op.lora_down.weight", "unet.down_blocks.0.downsamplers.0.conv"),
        ("diffusion_model.middle_block.1.proj_in.lora_A.weight", "unet.mid_block.attentions.0.proj_in"),
        (
            "text_encoders.clip_g.transformer.text_model.encoder.layers.1.mlp.fc2.lora_B.weight",
            "text_encoder_2.text_model.encoder.layers.1.mlp.fc2",
        ),
        (
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight",
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
        ),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        ),
        ("base_model.model.encoder.layers.0.mlp.fc1.lora_A.weight", "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        ("unet.base_model.model.conv_in.lora_A.ink.weight", "unet.conv_in"),
        ("lora_unet_double_blocks_0_img_attn_proj.alpha", "unet.double_blocks_0_img_attn_proj"),  # Flux
        ("transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight", "transformer.single_transformer_blocks.0.proj_mlp"),
    ],
)
def test_variants_of_names_are_known(key, layer):
    found = split(key)
    assert found is not None and found[0] == layer


def test_keys_of_no_layer_are_handed_back():
    tensors = pair() | {"bundle_emb.ink.clip_l": torch.ones(2, 2), "emb_params": torch.ones(1)}
    assert set(decode(tensors).surplus) == {"bundle_emb.ink.clip_l", "emb_params"}


def test_a_layer_that_is_there_twice_is_refused():
    both = pair() | pair("lora_unet_input_blocks_0_0")
    with pytest.raises(SdloraError, match="both of the layer unet.conv_in"):
        decode(both)


def test_a_kohya_alpha_is_a_single_precision_scalar_unless_that_would_change_it():
    assert kohya.exact(8.0).dtype == torch.float32 and kohya.exact(8.0).shape == ()
    assert kohya.exact(0.1).dtype == torch.float64 and kohya.exact(0.1).item() == 0.1


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_a_missing_or_zero_kohya_alpha_means_the_rank(alpha):
    tensors = pair() | ({} if alpha is None else {"lora_unet_conv_in.alpha": torch.tensor(alpha)})
    assert decode(tensors).layers[LAYER].alpha == 3.0


def test_an_alpha_that_is_no_number_is_refused():
    with pytest.raises(SdloraError, match="alpha is no number"):
        decode(pair() | {"lora_unet_conv_in.alpha": torch.ones(2)})


def config(**entries) -> dict[str, str]:
    return {CONFIG: json.dumps(entries)}


PEFT_PAIR = {"unet.conv_in.lora_A.weight": torch.ones(3, 5), "unet.conv_in.lora_B.weight": torch.ones(7, 3)}


@pytest.mark.parametrize(
    ("header", "alpha"),
    [
        ({}, 3.0),
        (config(**{"unet.lora_alpha": 7}), 7.0),
        (config(**{"text_encoder.lora_alpha": 7}), 3.0),
        (config(**{"unet.lora_alpha": 7, "unet.alpha_pattern": {"conv_out": 1, "conv_in": 2}}), 2.0),
        (config(**{"unet.lora_alpha": 7, "unet.alpha_pattern": {"^conv_in": 2, "conv_in": 5}}), 2.0),
        (config(**{"unet.lora_alpha": 7, "unet.alpha_pattern": {"con.*": 2}}), 2.0),
        (config(**{"unet.lora_alpha": 7, "unet.use_rslora": True}), 7 * 3**0.5),
        (config(lora_alpha=5, alpha_pattern={}, peft_type="LORA"), 5.0),  # adapter_config.json
    ],
)
def test_alpha_of_a_peft_file_follows_its_config(header, alpha):
    assert decode(PEFT_PAIR, header).layers[LAYER].alpha == alpha


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"unet.lora_alpha": "x"}, "unet.lora_alpha in the header's .* is 'x', which is no number"),
        ({"unet.lora_alpha": [1]}, "is .1., which is no number"),
        ({"unet.lora_alpha": True}, "is True, which is no number"),
        ({"unet.alpha_pattern": [1]}, "alpha_pattern in the header's .* is no table"),
        ({"unet.alpha_pattern": {"(": 1}}, "which is no pattern"),
        ({"unet.alpha_pattern": {"x": "y"}}, "alpha_pattern of x .* is 'y', which is no number"),
    ],
)
def test_a_damaged_peft_config_is_one_clear_line(entries, message):
    with pytest.raises(SdloraError, match=message):
        decode(PEFT_PAIR, config(**entries))


def test_a_peft_config_of_null_says_nothing():
    assert decode(PEFT_PAIR, config(**{"unet.lora_alpha": None, "unet.alpha_pattern": None})).layers[LAYER].alpha == 3.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2])
def test_numbers_that_are_not_finite_are_refused_with_their_layer(value, dtype):
    for key in pair():
        tensors = {name: tensor.to(dtype) for name, tensor in (pair() | {key: torch.full_like(pair()[key], value)}).items()}
        with pytest.raises(SdloraError, match="unet.conv_in has numbers that are not finite"):
            decode(tensors)
    with pytest.raises(SdloraError, match="conv_in.alpha is (nan|inf); the file is damaged"):
        decode(pair() | {"lora_unet_conv_in.alpha": torch.tensor(value)})


def test_pefts_own_rule_gives_the_same_alphas():
    """On names and patterns where several match: the first does (peft.utils.other.get_pattern_key)."""
    from peft.utils.other import get_pattern_key

    patterns = {"to_q": 1.0, "attn1.to_q": 2.0, "^mid_block.attentions.0.proj_in": 3.0, r"up_blocks\.\d\..*proj_out": 4.0, "net.2": 5.0}
    layers = [name for name in named_layers(true_size("sd1")) if name.startswith("unet.")]
    tensors = {f"{name}.lora_{end}.weight": torch.ones(1, 1) for name in layers for end in "AB"}
    found = decode(tensors, config(**{"unet.alpha_pattern": patterns, "unet.lora_alpha": 9.0})).layers
    for name in layers:
        path = name.removeprefix("unet.")
        assert found[name].alpha == patterns.get(get_pattern_key(patterns, path), 9.0)


@pytest.mark.parametrize("dialect", [kohya, peft, diffusers])
def test_an_incomplete_pair_is_refused(dialect):
    tensors = dialect.encode({LAYER: Lora(torch.ones(3, 5), torch.ones(7, 3), 1.0)})
    del tensors[next(key for key in tensors if "up" in key or "_B" in key)]
    with pytest.raises(SdloraError, match="unet.conv_in has .* but no up matrix"):
        decode(tensors)


def test_a_component_that_kohya_has_no_prefix_for_is_not_written():
    with pytest.raises(SdloraError, match="transformer.x cannot be written in kohya's format"):
        kohya.encode({"transformer.x": Lora(torch.ones(3, 5), torch.ones(7, 3), 1.0)})
    with pytest.raises(SdloraError, match="unet.time.x_in cannot be .*: lora_unet_time_x_in would be read as unet.time_x_in"):
        kohya.encode({"unet.time.x_in": Lora(torch.ones(3, 5), torch.ones(7, 3), 1.0)})


def test_decoding_takes_time_in_proportion_to_the_keys():
    """Four times the layers of SDXL take about four times as long, not sixteen."""
    layers = everything(true_size("sdxl"))
    one = kohya.encode(layers, "sdxl")
    four = dict(one)
    for i in range(1, 4):
        four |= {
            key.replace("lora_te2_text_model_encoder_layers_", f"lora_te2_text_model_encoder_layers_{i}00"): t for key, t in one.items()
        }
        four |= {key.replace("_transformer_blocks_", f"_transformer_blocks_{i}0"): t for key, t in one.items()}

    assert len(four) > 3 * len(one)

    times = [(processor_time(one), processor_time(four)) for _ in range(3)]  # in turns, so that both meet the same load
    small, large = (min(times) for times in zip(*times, strict=True))
    assert large / len(four) < 3 * small / len(one)


def processor_time(tensors) -> float:
    """Seconds of this thread to decode keys that it has never seen, whatever else the machine does."""
    split.cache_clear()
    start = time.thread_time()
    decode(tensors)
    return time.thread_time() - start


def test_a_sum_that_overflows_is_no_number_that_is_not_finite():
    large = torch.full((4, 8), 60_000.0, dtype=torch.float16)
    assert not torch.isfinite(large.sum()) and finite(large) and finite(large.float(), -large.float())
    for value in (float("nan"), float("inf"), -float("inf")):
        spoilt = torch.zeros(4, 8)
        spoilt[2, 3] = value
        assert not finite(spoilt) and not finite(torch.ones(2), spoilt) and not finite(spoilt, -spoilt)
        assert not finite(spoilt.to(torch.float8_e5m2))
