"""Pictures with different adapters in one batch, and how `auto` chooses: each picture is the one that it would be alone."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdlora import Library, files, generation
from sdlora.commands import generate as command
from sdlora.errors import SdloraError
from sdlora.generation import Request, adapters, draw, generate, load_named
from sdlora.strength import parse

STEPS = 3
TARGETS = (("attention", "text_attention"), ("attention", "convolutions", "time_projections"), ("feed_forward", "text_mlp"))


@pytest.fixture(scope="module")
def named(components):
    """a, b and c: strong enough to be seen, of other ranks and on other layers, of the text encoder too."""
    from sdlora.adapter import Adapter
    from sdlora.apply import select
    from sdlora.kinds.lora import Lora
    from sdlora.layers import named_layers

    layers, result = named_layers(components.modules), {}
    for i, (name, targets) in enumerate(zip("abc", TARGETS, strict=True)):
        generator = torch.Generator().manual_seed(i)
        updates = {}
        for layer in select(components.modules, targets):
            out, *rest = layers[layer].weight.shape
            a = torch.randn((i + 2, *rest), generator=generator) / 5
            updates[layer] = Lora(a, torch.randn((out, i + 2, *(1 for _ in rest[1:])), generator=generator) / 6, 2.0)
        result[name] = Adapter(updates)
    return result


def request(prompt: str, seed: int, **settings) -> Request:
    return Request(prompt, seed=seed, **{"steps": STEPS, **settings})


MIXED = [
    request("a cat face <lora:a:0.8>", 1),
    request("a dog <lora:b:1>", 2, guidance=3.0),
    request("the sun", 3),
    request("a cat face <lora:a:0.5:1> <lora:c:0.7>", 4),
    request("a [cat:dog:0.5] face <lora:c:1@0-0.4,0.2@0.4-1>", 5),
    request("a cat AND a dog:0.7 <lora:b:unet=1:mid=0>", 6),
    request("a cat face", 7, adapters=(("b", 0.6),)),
]


def pixels(components, requests, **settings) -> list[np.ndarray]:
    return [np.asarray(picture.image).astype(int) for picture in generate(components, requests, **settings)]


def difference(one: np.ndarray, two: np.ndarray) -> int:
    return int(abs(one - two).max())


@contextmanager
def calls(components):
    """How many rows each call of the U-Net has."""
    rows: list[int] = []
    with components.unet.register_forward_hook(lambda m, inputs, output: rows.append(len(inputs[0]))):
        yield rows


@pytest.fixture(scope="module")
def alone(components, named):
    return [pixels(components, [one], named=named, apply="stacked")[0] for one in MIXED]


def test_one_batch_of_different_adapters_draws_each_picture_as_it_is_alone(components, named, alone):
    with calls(components) as rows:
        together = pixels(components, MIXED, named=named, apply="stacked", batch=len(MIXED))
    assert rows == [15] * STEPS  # seven pictures, of which one has two conditions, and seven without a prompt
    assert max(difference(a, b) for a, b in zip(together, alone, strict=True)) <= 1
    bare = [Request(one.prompt.partition(" <")[0], seed=one.seed, steps=STEPS, guidance=one.guidance) for one in MIXED]
    plain = pixels(components, bare)
    assert [difference(a, b) > 10 for a, b in zip(together, plain, strict=True)] == [i != 2 for i in range(len(MIXED))]


def test_a_picture_without_adapters_is_the_bases_whatever_its_neighbours_have(components, named):
    wanted = [request("the sun", 3), request("a dog <lora:a:0>", 4), request("a dog <lora:b:1>", 5)]
    mixed, base = pixels(components, wanted, named=named), pixels(components, [wanted[0], request("a dog", 4)])
    assert difference(mixed[0], base[0]) == difference(mixed[1], base[1]) == 0


def test_the_latents_agree_to_rounding_not_only_the_pixels(components, named):
    states = {}

    def final(requests):
        generator = generate(components, requests, named=named, apply="stacked", batch=8, callback=lambda s: states.update(x=s.x.clone()))
        list(generator)
        return states["x"]

    together = final(MIXED[:4])
    for i, one in enumerate(MIXED[:4]):
        expected = final([one])
        assert (together[i : i + 1] - expected).abs().max() < 2e-5 * expected.abs().max()


def test_each_text_is_encoded_once_for_each_state_of_the_text_encoder(components, named):
    texts = []
    wanted = [
        request(f"a cat face {tag}", 1) for tag in ("", "<lora:a:1>", "<lora:a:1>", "<lora:a:0.5>", "<lora:b:1>", "<lora:a:te=0:unet=1>")
    ]
    with components.text_encoders[0].register_forward_hook(lambda *_: texts.append(1)):
        pixels(components, wanted, named=named, batch=6)
    assert len(texts) == 3 * 2  # base (four of them: b has nothing for it), a, half of a; the prompt and the empty negative one


@pytest.mark.parametrize(
    ("wanted", "ways"),
    [
        ([request("a cat <lora:a:1>", 1, steps=8)] * 2, ["fused"] * 2),
        ([request("a cat <lora:a:1>", 1, steps=7)] * 2, ["stacked"] * 2),  # too few steps to pay
        ([request("a cat", 1, steps=8)], ["stacked"]),  # nothing to fuse
        ([request("a cat <lora:a:0>", 1, steps=8)], ["stacked"]),
        ([request("a cat <lora:a:1@0-0.5>", 1, steps=8)] * 2, ["stacked"] * 2),
        ([request("a cat <lora:a:1>", 1, steps=8), request("a cat <lora:a:0.5>", 1, steps=8)], ["stacked"] * 2),
        (
            [request("a cat <lora:a:1>", 1, steps=8)] * 4
            + [request("a dog <lora:b:1>", 1, steps=8), request("a dog <lora:c:1>", 1, steps=8)],
            ["fused"] * 4 + ["stacked"] * 2,  # the first fill a batch
        ),
    ],
)
def test_auto_chooses_by_what_is_asked_and_says_so(components, named, wanted, ways, monkeypatch):
    module = generation.generate.__globals__
    monkeypatch.setitem(module, "draw", lambda components, requests, *_: [Image.new("RGB", (8, 8))] * len(requests))
    heard: list[str] = []
    pictures = list(generate(components, wanted, named=named, say=heard.append))
    assert [picture.apply for picture in pictures] == ways
    assert len(heard) == ("<lora" in wanted[0].prompt) and all(way in heard[0] for way in ways if heard)


def test_auto_fuses_for_a_compiled_unet_what_can_be_fused(components, named, monkeypatch):
    monkeypatch.setattr(components.unet, "_compiled_call_impl", components.unet._call_impl)
    chosen = [(request(f"a cat <lora:a:{eta}>", 1), [("a", parse(eta))]) for eta in ("1", "1@0-0.5")]
    assert generation.adapters.ways(components, chosen, "auto", lambda _: 4) == ["fused", "stacked"]


def test_auto_draws_what_fused_and_stacked_draw(components, named):
    one = request("a cat face <lora:a:0.8>", 1, steps=8)
    ways = [pixels(components, [one], named=named, apply=apply)[0] for apply in ("auto", "fused", "stacked")]
    assert difference(ways[0], ways[1]) == 0 and difference(ways[1], ways[2]) <= 1


def test_a_requests_own_adapters_are_asked_for_by_name_or_are_the_record_of_those_for_all(components, named):
    own = request("a cat face", 1, adapters=(("a", 0.8),))
    with pytest.raises(SdloraError, match="has the adapter a, which was not given"):
        generate(components, [own])
    expected = pixels(components, [request("a cat face", 1)], weighted=[(named["a"], 0.8)], apply="stacked")[0]
    assert difference(pixels(components, [own], weighted=[(named["a"], 0.8)], apply="stacked")[0], expected) == 0
    assert difference(pixels(components, [own], named=named, apply="stacked")[0], expected) == 0


def test_a_library_with_little_room_draws_the_same_and_holds_no_more_than_a_batch_needs(components, named, tmp_path, monkeypatch):
    found = {name: files.save(adapter, tmp_path / f"{name}.safetensors") for name, adapter in named.items()}
    wanted = [request(f"a cat face <lora:{name}:1>", i, steps=1) for i, name in enumerate("abcab")]
    expected = pixels(components, wanted, named=load_named(components, found, Library()), batch=1)  # read as well: in the file's order
    small, seen = Library(0), []
    lazy = load_named(components, found, small)
    assert small.bytes == 0
    drawn = pixels(components, wanted, named=lazy, batch=1, callback=lambda _: seen.append(len(small)))
    assert seen == [1] * 5 and small.bytes == 0
    assert all(difference(a, b) == 0 for a, b in zip(drawn, expected, strict=True))


def test_the_text_of_an_adapter_that_was_read_again_is_not_taken_for_anothers(components, named, tmp_path):
    """Adapters that come and go may lie at one address; what their texts are remembered by may not."""
    found = {name: files.save(named["a" if name < "n" else "c"], tmp_path / f"{name}.safetensors") for name in ("left", "right")}
    wanted = [request(f"a cat face <lora:{name}:1>", 1, steps=1) for name in ("left", "right", "left", "right")]
    drawn = pixels(components, wanted, named=load_named(components, found, Library(0)), batch=1)
    assert difference(drawn[0], drawn[2]) == difference(drawn[1], drawn[3]) == 0 and difference(drawn[0], drawn[1]) > 10


def test_draw_reads_a_file_once_for_many_calls_with_one_library(components, named, tiny_base, tmp_path, monkeypatch):
    file = files.save(named["a"], tmp_path / "style.safetensors")
    library = Library()
    monkeypatch.setattr(generation.session, "load", lambda *_, **__: components)
    one, two = (list(draw("a cat", {file: 1.0}, seeds=[1], base=tiny_base, steps=1, library=library)) for _ in range(2))
    assert len(library) == 1 and one[0].image.tobytes() == two[0].image.tobytes()


def test_the_command_says_what_auto_chose_in_its_output_and_in_the_picture(tiny_base, named, tmp_path: Path, command_line):

    file = files.save(named["a"], tmp_path / "style.safetensors")
    call = command_line(command, "generate")
    said = call("a cat", "--base", tiny_base, "--adapter", f"{file}=0.5", "--steps", 8, "--output", tmp_path, "--adapter-memory", "1GB")
    assert "adapters are fused" in said
    (picture,) = tmp_path.glob("*.png")
    assert "fused" in str(Image.open(picture).info)


def test_an_infinite_adapter_of_one_picture_does_not_reach_its_neighbours_text(components, random_adapter):
    wild = random_adapter(components.modules, ("attention", "text_attention"), size=float("inf"))
    tame = random_adapter(components.modules, ("attention", "text_attention"), seed=1)
    named = {"wild": wild, "tame": tame}
    requests = [Request("a cat", steps=2, adapters=(("tame", 1.0),)), Request("a cat", steps=2, adapters=(("wild", 1.0),))]
    pictures = generate(components, requests, named=named, apply="stacked", batch=2)
    beside = next(pictures).image
    with pytest.raises(SdloraError, match="turned into NaN at step 1 of 2"):
        next(pictures)
    (alone,) = generate(components, requests[:1], named=named, apply="stacked")
    assert np.abs(np.asarray(beside, int) - np.asarray(alone.image, int)).max() <= 1


CURVE = "1@0-0.5,0.1@0.5-1"


def test_in_the_second_pass_of_a_hires_picture_strengths_by_the_step_begin_anew(components, named):
    """With a pixel upscaler that pass is img2img of the enlarged first picture under the same strengths, bit for bit."""
    prompt = f"a cat face <lora:a:te=0.3:unet={CURVE}>"
    wanted = request(prompt, 3, steps=4, hires=1.5, hires_denoise=0.5, hires_steps=2, hires_upscaler="lanczos")
    first = next(generate(components, [request(prompt, 3, steps=4)], named=named)).image.resize((96, 96), Image.Resampling.LANCZOS)
    second = request(prompt, 3, steps=2, init=first, denoise=0.5, exact_steps=True)
    hires, again = (pixels(components, [one], named=named)[0] for one in (wanted, second))
    assert difference(hires, again) == 0
    late = request(prompt.replace(CURVE, "0.1"), 3, steps=2, init=first, denoise=0.5, exact_steps=True)
    assert difference(hires, pixels(components, [late], named=named)[0]) > 2, "it does not stay at its last value"


def test_in_img2img_strengths_by_the_step_run_over_the_steps_that_are_drawn(components, named):
    """Five steps from the fourth of eight levels, asked for as a share of eight and as five: the same picture, bit for bit."""
    photo = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 40).convert("RGB")
    ways = ({"steps": 8, "denoise": 0.5}, {"steps": 5, "denoise": 0.6, "exact_steps": True})
    one, two = (pixels(components, [request(f"a dog <lora:a:{CURVE}>", 1, init=photo, **way)], named=named)[0] for way in ways)
    assert difference(one, two) == 0


def test_auto_counts_the_steps_that_are_drawn(components, named):
    """Eight pay for fusing; of twenty with little denoise seven are drawn, of four with a second pass eight."""
    photo = Image.new("RGB", (64, 64), "red")
    ways = (
        {"steps": 20, "init": photo, "denoise": 0.3},
        {"steps": 20, "init": photo, "denoise": 0.4},
        {"steps": 4, "hires": 1.0, "hires_steps": 4},
    )
    chosen = [adapters.ways(components, [(request("", 1, **way), [("a", parse("1"))])], "auto", lambda r: 4) for way in ways]
    assert chosen == [["stacked"], ["fused"], ["fused"]]
