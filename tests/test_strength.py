"""The grammar of strengths: one meaning in Python, TOML, on the command line and in tags."""

import math
import re
from contextlib import nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdlora import apply, blocks
from sdlora.apply import strengths
from sdlora.errors import SdloraError
from sdlora.layers import named_layers
from sdlora.strength import BLOCKS, COMPONENTS, Piece, Strength, constant, governs, parse, strength

law = settings(max_examples=150)

TO_Q = "transformer_blocks.0.attn1.to_q"
DOWN, MID, UP = f"unet.down_blocks.1.attentions.0.{TO_Q}", f"unet.mid_block.attentions.0.{TO_Q}", f"unet.up_blocks.1.attentions.2.{TO_Q}"
TIME, TE1, TE2 = "unet.time_embedding.linear_1", "text_encoder.text_model.encoder.layers.0.mlp.fc1", "text_encoder_2.text_model.encoder.x"
LAYERS = (DOWN, MID, UP, TIME, TE1, TE2)


def etas(text: str, fraction: float = 0.0) -> list[float]:
    return [parse(text).at(fraction, layer) for layer in LAYERS]


@pytest.mark.parametrize(
    ("text", "expected"),  # of LAYERS
    [
        ("0.8", [0.8] * 6),
        ("-1e-3", [-0.001] * 6),
        ("0.5:1", [1, 1, 1, 1, 0.5, 0.5]),  # text encoders : U-Net
        ("te=0.5:unet=1", [1, 1, 1, 1, 0.5, 0.5]),
        ("te=0.5", [0.5] * 6),  # as in A1111
        ("unet=0.5", [0.5, 0.5, 0.5, 0.5, 1, 1]),
        ("text_encoder=0.5", [1, 1, 1, 1, 0.5, 1]),
        ("te=0.5:te2=0", [0.5, 0.5, 0.5, 0.5, 0.5, 0]),
        ("0.7:text_encoder_2=0.1", [0.7, 0.7, 0.7, 0.7, 0.7, 0.1]),
        ("unet=0.8:mid=0:up.1=0.3", [0.8, 0, 0.3, 0.8, 1, 1]),
        ("0.8:up=0.1:up.1=0.2:up.1.2=0.3", [0.8, 0.8, 0.3, 0.8, 0.8, 0.8]),
        ("0.8:up.1.1=0.3:up.0=0.4", [0.8] * 6),
        ("in=0.1:middle=0.2:out=0.3", [0.1, 0.2, 0.3, 1, 1, 1]),
        (" unet = 0.8 : te = 0.5 ", [0.8, 0.8, 0.8, 0.8, 0.5, 0.5]),
    ],
)
def test_the_most_exact_word_wins_and_what_is_not_said_is_one(text: str, expected: list):
    assert etas(text) == expected


def test_steps_are_half_open_spans_and_zero_between_them():
    curve = "0.8@0-0.4,0.2@0.6-1"
    assert [parse(curve).at(i / 10, MID) for i in range(11)] == [0.8] * 4 + [0] * 2 + [0.2] * 5
    assert etas("unet=1@0.5-1:te=0.7", 0.25) == [0, 0, 0, 0, 0.7, 0.7]


@pytest.mark.parametrize("layer", [DOWN, MID, UP, TIME, TE1, TE2])
def test_python_toml_and_text_say_the_same(layer: str):
    ways = [strength("unet=0.8:text_encoder=0.5@0-0.4:mid=0"), strength({"unet": 0.8, "text_encoder": "0.5@0-0.4", "mid": 0})]
    ways.append(Strength((("unet", constant(0.8)), ("text_encoder", (Piece(0.5, 0, 0.4),)), ("mid", constant(0)))))
    assert len({str(way) for way in ways}) == 1 and len(set(ways)) == 1
    assert strength(0.8) == parse("0.8") == strength(parse("0.8")) and strength(1) == Strength()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "no strength"),
        ("much", "'much' is no strength"),
        ("nan", "no strength"),
        ("1e999", "finite"),
        ("0,8", "no strength"),
        ("0.8@0.4", "no strength"),
        ("0.8@0.5-0.4", "rising"),
        ("0.8@0-2", "from 0 to 1"),
        ("0.8@0-0.5,0.2@0.4-1", "overlap"),
        ("1:2:3", "plain numbers"),
        ("unett=1", "did you mean unet"),
        ("up.01=1", "up.01"),
        ("mid.0=1", "mid.0"),
        ("unet=1:unet=2", "twice"),
        ("in=1:down=2", "twice"),
        ("0.8:te=0.3", "te=0.3:unet=0.8"),
        ({"unet": "a"}, "unet=a"),
        (True, "True"),
        (None, "None"),
        (math.inf, "finite"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(value: object, message: str):
    with pytest.raises(SdloraError, match=message) as error:
        strength(value)
    assert "\n" not in str(error.value)


numbers = st.floats(-1e6, 1e6)


@st.composite
def curves(draw) -> tuple[Piece, ...]:
    cuts = sorted(draw(st.sets(st.floats(0, 1).map(abs), min_size=2, max_size=6)))
    pieces = [Piece(draw(numbers), one, two) for one, two in zip(cuts, cuts[1:], strict=False)]
    kept = [piece for piece in pieces if draw(st.booleans())]
    return tuple(kept or pieces[:1])


keys = st.sampled_from(["", *COMPONENTS, *BLOCKS, "down.0", "up.2", "up.12.3"])
many = st.dictionaries(keys, st.one_of(numbers.map(constant), curves())).map(lambda found: Strength(tuple(found.items())))


@law
@given(many)
def test_a_printed_strength_is_read_as_itself(one: Strength):
    assert parse(str(one)) == one


@law
@given(many, st.floats(0, 1), st.sampled_from(LAYERS))
def test_number_and_stepwise_say_what_at_does(one: Strength, fraction: float, layer: str):
    if one.number is not None:
        assert one.at(fraction, layer) == one.number
    if not one.stepwise:
        assert one.at(fraction, layer) == one.at(0, layer)


@law
@given(st.text(st.sampled_from("0.8:=@-,unetmid1 "), max_size=12))
def test_any_text_is_a_strength_or_an_error_for_the_user(text: str):
    try:
        assert parse(str(parse(text))) == parse(text)
    except SdloraError as error:
        assert "\n" not in str(error)


def test_the_blocks_and_what_is_around_them_cover_every_layer_of_a_unet_once(components):
    found = {name: [block for block in BLOCKS if governs(block, name)] for name in named_layers({"unet": components.unet})}
    assert {name for name, blocks in found.items() if not blocks} == {"unet.time_embedding.linear_1", "unet.time_embedding.linear_2"}
    assert max(map(len, found.values())) == 1
    assert found["unet.conv_in"] == ["down"] and found["unet.conv_out"] == ["up"]
    outside = [name for name in found if not any(part in name for part in ("blocks", "mid_block", "embedding"))]
    assert sorted(outside) == ["unet.conv_in", "unet.conv_out"]


def test_a_numbered_block_has_all_its_layers_and_a_position_one_resnet_and_attention(components):
    names = list(named_layers({"unet": components.unet}))
    assert [n for n in names if governs("up.0", n)] == [n for n in names if n.startswith("unet.up_blocks.0.")]
    kinds = {name.split(".")[3] for name in names if governs("up.0", name)}
    assert kinds == {"resnets", "attentions", "upsamplers"}
    first = [name for name in names if governs("up.0.0", name)]
    assert first == [n for n in names if n.startswith(("unet.up_blocks.0.attentions.0.", "unet.up_blocks.0.resnets.0."))] and first


def test_parts_of_an_adapter_have_one_strength_each_and_lose_no_layer(components, random_adapter):
    adapter = random_adapter(components.modules, ["attention", "text_attention"])
    parts = strengths.parted([[(adapter, parse("unet=0.8:mid=0:text_encoder=0.5@0-0.5"))]])
    names = [name for part, _ in parts for name in part.layers]
    assert sorted(names) == sorted(adapter.layers) and len(parts) == 3
    for fraction in (0.0, 0.5):
        for (part, _), eta in zip(parts, strengths.at(parts, fraction), strict=True):
            assert {parse("unet=0.8:mid=0:text_encoder=0.5@0-0.5").at(fraction, name) for name in part.layers} == {eta}


def test_one_number_leaves_the_adapter_whole(components, random_adapter):
    adapter = random_adapter(components.modules, ["attention"])
    assert strengths.parted([[(adapter, strength(0.8))]])[0][0] is adapter


@pytest.mark.parametrize("way", ["stacked", "fused"])
def test_stacked_and_fused_blocks_are_the_sum_over_layers(components, random_adapter, predict, way: str):
    """A strength by block is the adapter with each update scaled by hand: α is linear in ΔW."""
    from dataclasses import replace

    from sdlora.adapter import Adapter

    adapter, wanted = random_adapter(components.modules, ["attention", "text_attention"]), parse("unet=0.8:mid=0:up.1=-0.3:te=0.5")
    scaled = Adapter({name: replace(u, alpha=u.alpha * wanted.at(0, name)) for name, u in adapter.layers.items()})
    parts = strengths.parted([[(adapter, wanted)]])
    weighted = [(part, eta) for (part, _), eta in zip(parts, strengths.at(parts, 0), strict=True)]
    with apply.applied(components.modules, weighted, way):
        ours = predict(components)
    with apply.applied(components.modules, [(scaled, 1.0)], way):
        theirs = predict(components)
    assert (ours - predict(components)).abs().max() > 1e-3
    assert (ours - theirs).abs().max() < 1e-5


def test_a_vector_of_blocks_is_the_extensions_whatever_its_count(loaded):
    """By the blocks of Stability's code, whose names the extension looks for: input_blocks.1 is IN01."""
    from sdlora.checkpoints.unet import name as stabilitys

    for kind, long, short in (("sd1", 26, 17), ("sdxl", 20, 12)):
        unet = loaded(kind).unet
        layers = [name for name in named_layers(loaded(kind).modules) if name.startswith("unet.")]
        assert {blocks.block_of(name) for name in layers} - {None} == set(blocks.COUNTED[long]) - {"BASE"}
        for count in (long, short):
            vector = tuple(i / 100 + 0.01 for i in range(count))
            expected = dict(zip(blocks.COUNTED[count], vector, strict=True))
            for name in layers:
                found = re.match(r"(input|middle|output)_blocks?(?:\.(\d+))?", stabilitys(name.removeprefix("unet."), unet.config))
                block = found and ("M00" if found[1] == "middle" else f"{'IN' if found[1] == 'input' else 'OUT'}{int(found[2]):02d}")
                factor = expected.get(block, 0.0) if block else 1.0
                assert Strength(vector=vector).at(0, name) == pytest.approx(factor), name
            assert Strength(vector=vector).at(0, "text_encoder.text_model.encoder.layers.0.mlp.fc1") == 0.01


def test_a_vector_multiplies_what_else_is_said_and_is_read_as_it_is_printed():
    ones = ",".join("1" * 16)
    one = parse(f"0.8@0-0.5:mid=0.5:lbw=0.5,{ones}")
    assert parse(str(one)) == one and one.number is None and one.stepwise
    assert [one.at(f, "unet.mid_block.attentions.0.proj_in") for f in (0, 0.5)] == [0.5, 0.5]
    assert [one.at(f, "text_encoder.text_model.embeddings") for f in (0, 0.5)] == [0.4, 0.0]
    assert strength({"": 0.8, "lbw": [0.5, *[1] * 16]}) == parse(f"0.8:lbw=0.5,{ones}") and str(parse(f"1:lbw=0.5,{ones}")).startswith(
        "1:lbw="
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1:lbw=0,1,1", "lbw has 3 numbers; it has 17 or 26 for Stable Diffusion 1.x and 2.x, 12 or 20 for XL"),
        ("1:1:lbw=OUTALL", "lbw is 'OUTALL', which are no numbers; .*presets"),
        ("1:lbw=" + ",".join(["nan"] * 17), "lbw has the number nan"),
        ("1:lbw=" + ",".join("1" * 17) + ":lbw=" + ",".join("1" * 17), "names lbw twice"),
        ("1:stop=9", "a strength with stop=; steps are fractions of the run here: 0.8@0.25-1"),
    ],
)
def test_what_is_no_vector_is_said_with_the_counts_that_there_are(text: str, message: str):
    with pytest.raises(SdloraError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("kind", "count", "message"),
    [
        ("sd1", 12, "lbw has 12 numbers, and for .* it has 17 or 26"),
        ("sdxl", 17, "lbw has 17 numbers, and for .* it has 12 or 20"),
        ("emoji", 17, "has other blocks than it counts; say down, mid and up by themselves"),
        ("sd1", 17, ""),
        ("sd2", 26, ""),
        ("sdxl", 20, ""),
    ],
)
def test_a_vector_has_to_count_the_blocks_of_the_base(components, loaded, kind: str, count: int, message: str):
    from sdlora.generation import adapters

    base, wanted = components if kind == "emoji" else loaded(kind), [("a", Strength(vector=(0.5,) * count))]
    with pytest.raises(SdloraError, match=message) if message else nullcontext():
        adapters.check(base, wanted, "stacked")


def test_a_block_that_the_base_has_not_is_no_silent_nothing(components, loaded):
    from sdlora.generation import adapters

    for base, there, missing in (
        (components, "up.2.1", "up.2.2"),
        (loaded("sdxl"), "down.2.1", "down.3"),
        (loaded("sd1"), "down.3", "up.4"),
    ):
        adapters.check(base, [("a", parse(f"1:{there}=0.5"))], "stacked")
        with pytest.raises(SdloraError, match=f"is said of {missing}, a block that .* has not"):
            adapters.check(base, [("a", parse(f"1:{missing}=0.5"))], "stacked")
