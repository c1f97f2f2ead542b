"""AUTOMATIC1111's text: written as it writes it, and taken apart again, whoever wrote it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from said import SETTINGS

from sdlora.infotext import Infotext, fields, parsed, quoted, written

EXAMPLE = """girl with an artist's beret, determined, blue eyes, by Alphonse Mucha, ((eyeshadow)), (coquettish), detailed
Negative prompt: ugly, fat, (((deformed))), [blurry], (poorly drawn hands), messy drawing
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b"""


def test_the_text_is_what_a1111_writes():
    assert written(SETTINGS) == (
        "a cat face, flat emoji <lora:style one:0.8>\n"
        "Negative prompt: blue: very\n"
        "Steps: 20, Sampler: Euler, Schedule type: Uniform, CFG scale: 5, Seed: 1099511627777, Size: 64x96, "
        'Model hash: 0123456789, Model: emoji, Lora hashes: "style one: cafe00cafe00", Version: sdlora 0.1.0'
    )


def test_without_adapters_and_negative_prompt_their_words_are_absent():
    assert written({"prompt": "a cat", "seed": 0, "steps": 3}) == "a cat\nSteps: 3, Seed: 0"


def test_every_setting_has_a1111s_name_and_place():
    further = {
        **{"sampler": "DPM2 a", "schedule": "sgm_uniform", "eta": 0.67, "s_noise": 1.003, "noise": "cpu", "clip_skip": 2},
        "emphasis": "No norm",
        "base": {"name": "a:b,c", "hash": "x" * 64, "model": "31e35c80fc" + "0" * 54, "vae": {"name": "vae-ft", "hash": "735e4c3a447a"}},
        "adapters": [
            {"file": "one.safetensors", "strength": "unet=0.8@0-0.5:te=0.5", "hash": "111111111111"},
            {"file": "two.safetensors", "strength": 1, "hash": "222222222222", "tag": "two"},
        ],
    }
    text = parsed(written(SETTINGS | further))
    assert text.prompt == "a cat face, flat emoji <lora:one:te=0.5:unet=0.8@0-0.5>"  # the other stands in the prompt already
    assert list(text.fields.items())[1:] == [
        *[("Sampler", "DPM2 a"), ("Schedule type", "SGM Uniform"), ("CFG scale", "5"), ("Seed", "1099511627777"), ("Size", "64x96")],
        *[
            ("Model hash", "31e35c80fc"),
            ("Model", "abc"),
            ("VAE hash", "735e4c3a44"),
            ("VAE", "vae-ft"),
            ("Clip skip", "2"),
            ("RNG", "CPU"),
        ],
        *[("Eta", "0.67"), ("Sigma noise", "1.003"), ("Lora hashes", "one: 111111111111, two: 222222222222"), ("Emphasis", "No norm")],
        ("Version", "sdlora 0.1.0"),
    ]
    assert text.hashes == {"one": "111111111111", "two": "222222222222"}
    assert parsed(written(SETTINGS | {"sampler": "DDIM", "eta": 0.5})).fields["Eta DDIM"] == "0.5"


def test_a1111s_own_example_is_read():
    text = parsed(EXAMPLE)
    assert text.prompt.startswith("girl with") and text.prompt.endswith("detailed")
    assert text.negative == "ugly, fat, (((deformed))), [blurry], (poorly drawn hands), messy drawing"
    assert text.fields == {
        **{"Steps": "20", "Sampler": "Euler a", "CFG scale": "7", "Seed": "965400086", "Size": "512x512", "Model hash": "45dee52b"}
    }


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a cat", Infotext("a cat")),
        ("a cat\nNegative prompt: a dog", Infotext("a cat", "a dog")),
        ("a: 1, b: 2", Infotext("a: 1, b: 2")),  # two fields are no settings
        ("Steps: 3, Seed: 1, Size: 8x8", Infotext("", "", {"Steps": "3", "Seed": "1", "Size": "8x8"})),
        (
            "one\ntwo\n\nNegative prompt: three\nfour\nSteps: 1, a: 2, b: 3",
            Infotext("one\ntwo\n", "three\nfour", {"Steps": "1", "a": "2", "b": "3"}),
        ),
        ("a\r\nSteps: 1, a: 2, b: 3\r\n", Infotext("a", "", {"Steps": "1", "a": "2", "b": "3"})),
        ("a\nSteps: 1, a: 2, b: 3\nTemplate: {a|b}", Infotext("a", "", {"Steps": "1", "a": "2", "b": "3"}, "Template: {a|b}")),
    ],
)
def test_prompt_negative_settings_and_what_stands_behind_them(text, wanted):
    assert parsed(text) == wanted


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('a: "x, y: z", b: 2', {"a": "x, y: z", "b": "2"}),
        (r'a: "say \"x\", y", b: "one\ntwo"', {"a": 'say "x", y', "b": "one\ntwo"}),
        ('a: "no end, b: 2', {"a": '"no end', "b": "2"}),
        ('a: "x" and more, b: 2', {"a": '"x" and more', "b": "2"}),
        ('Hashes: {"model": "aa", "lora:x": "bb"}, b: 2', {"Hashes": '{"model": "aa", "lora:x": "bb"}', "b": "2"}),
        ("Hires upscaler: 4x_foo (bar), ControlNet 0: x", {"Hires upscaler": "4x_foo (bar)", "ControlNet 0": "x"}),
        ("junk, a: 1, , b:2,c:  3  ", {"a": "1", "b": "2", "c": "3"}),
        ("a: 1, a: 2", {"a": "1"}),
        ("", {}),
        (",:,::", {}),
    ],
)
def test_fields_of_every_kind(line, wanted):
    assert fields(line) == wanted


def test_values_are_quoted_by_a1111s_rule():
    assert [quoted(text) for text in ("plain", "a,b", "a:b", "a\nb", 'a "b"', 'a "b", c')] == [
        *("plain", '"a,b"', '"a:b"', '"a\\nb"', 'a "b"', json.dumps('a "b", c')),
    ]


@given(st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z /-]{0,8}[A-Za-z]", fullmatch=True), st.text(min_size=1), min_size=3, max_size=6))
def test_quoted_values_come_back_whatever_they_are(wanted):
    line = ", ".join(f"{key}: {json.dumps(value)}" for key, value in wanted.items())
    assert fields(line) == wanted


@given(st.text())
def test_any_text_is_read_without_an_error(text):
    parsed(text)
    parsed(f"a cat\nNegative prompt: x\nSteps: 1, Seed: {text}")
