"""Drawings from settings files, prompts and old pictures: layers, what comes back bit for bit, and what is missing."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora import files, generation, images
from sdlora.commands import generate as command
from sdlora.drawing import Drawing, carry_out, places, reading, recall, requests, settings, work
from sdlora.drawing.prompt_files import requests as of_file
from sdlora.drawing.translate import PLAIN, TRANSLATED
from sdlora.errors import SdloraError
from sdlora.generation import Request, record
from sdlora.infotext import parsed, written

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Nothing is known of files that earlier tests used."""
    monkeypatch.setenv("SDLORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(command_line, tiny_base: Path, tmp_path: Path):
    call = command_line(command, "generate")
    return lambda *words: call("--base", tiny_base, "--steps", 2, "--output", tmp_path / "out", *words)


@pytest.fixture(scope="module")
def adapter_files(components, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with style.safetensors and text.safetensors."""
    from sdlora.adapter import Adapter
    from sdlora.apply import select
    from sdlora.kinds.lora import Lora
    from sdlora.layers import named_layers

    folder, layers = tmp_path_factory.mktemp("adapters"), named_layers(components.modules)
    for seed, (name, targets) in enumerate({"style": ("attention",), "text": ("text_attention",)}.items()):
        generator = torch.Generator().manual_seed(seed)
        shapes = {layer: layers[layer].weight.shape for layer in select(components.modules, targets)}
        made = {
            layer: Lora(torch.randn(2, inside, generator=generator) / 4, torch.randn(out, 2, generator=generator) / 4, 2.0)
            for layer, (out, inside) in shapes.items()
        }
        files.save(Adapter(made, {}), folder / f"{name}.safetensors")
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def newest(folder: Path) -> Path:
    return max(folder.glob("[0-9]*"))


# --- settings


def test_every_setting_of_a_picture_reaches_the_request_or_is_translated():
    assert set(settings.scope(settings.PICTURE)) == set(PLAIN) | TRANSLATED
    untold = {f for f in Request.__dataclass_fields__} - set(settings.scope(settings.PICTURE)) - {"adapters", "tagged"}
    assert not untold, f"{untold} can be said in Python alone; give it a row in sdlora/drawing/settings.py"


def test_defaults_of_settings_are_the_requests():
    (made,) = requests(Drawing(prompt=("a",)))
    assert made == Request("a", seed=1)


def test_a_settings_file_says_what_the_command_line_can_and_the_command_line_wins(tmp_path: Path, adapter_files: Path):
    text = f'prompt = "a cat"\nseed = "1-3"\nsteps = 7\nadapter = ["{adapter_files}/style.safetensors=0.5"]\noutput = "out"\ncrop = "8x4"\n'
    (tmp_path / "a.toml").write_text(text)
    drawing, found = work.gathered({"steps": 3, "guidance": 2.0}, tmp_path / "a.toml")
    assert found is None and drawing.output == tmp_path / "out"
    made = requests(drawing)
    assert [(r.seed, r.steps, r.guidance, r.crop) for r in made] == [(seed, 3, 2.0, (8, 4)) for seed in (1, 2, 3)]
    ((path, eta),) = made[0].adapters
    assert (path, eta.number) == (str(adapter_files / "style.safetensors"), 0.5)


def test_relative_adapters_of_a_settings_file_start_at_its_folder(adapter_files: Path, tmp_path: Path, monkeypatch):
    (adapter_files / "a.toml").write_text('prompt = ["a", "b"]\nadapter = ["style.safetensors=te=0.5@0-0.5:unet=1"]\nadapters = ["."]\n')
    monkeypatch.chdir(tmp_path)
    drawing, _ = work.gathered({}, adapter_files / "a.toml")
    assert drawing.adapter == (f"{adapter_files}/style.safetensors=te=0.5@0-0.5:unet=1",) and drawing.adapters == (adapter_files,)
    assert len(requests(drawing)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('stepz = 3\nprompt = "a"', "unknown setting stepz in .*did you mean steps"),
        ('steps = "3"\nprompt = "a"', "steps is '3'"),
        ("steps = 3", "no prompt"),
        ("steps 3", "not valid TOML"),
    ],
)
def test_a_mistake_in_a_settings_file_is_one_line(tmp_path: Path, text: str, message: str):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(SdloraError, match=message) as error:
        requests(work.gathered({}, tmp_path / "a.toml")[0])
    assert "\n" not in str(error.value)


# --- the same picture again


CASES = {
    "plain": ["a cat (face:1.3) [red|blue]", "--negative", "blue: very", "--guidance", "4.123456789", "--width", "80"],
    "sampler": ["a cat", "--sampler", "Euler a", "--schedule", "karras", "--eta", "0.7", "--noise", "cuda", "--clip-skip", "2"],
    "adapters": [
        *("a cat <lora:style:unet=0.8@0-0.5:te=0.5:mid=0>", "--adapters", "FOLDER", "--adapter", "FOLDER/text.safetensors=te=0.7:unet=1"),
        *("--emphasis", "No norm"),
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_a_picture_is_drawn_again_bit_for_bit_and_says_the_same_of_itself(run, adapter_files: Path, tmp_path: Path, case: str):
    words = [word.replace("FOLDER", str(adapter_files)) for word in CASES[case]]
    run(*words, "--seed", "7")
    first = newest(tmp_path / "out")
    again = run_again(first, tmp_path / "again")
    assert (pixels(again) == pixels(first)).all()
    assert images.read_settings(again) == images.read_settings(first)


def run_again(path: Path, output: Path, **said) -> Path:
    """Nothing is said but the picture: base and adapters are found by their hashes."""
    drawing, found = work.gathered({"output": output, **said}, source=path)
    told: list[str] = []
    (made,) = work.drawn_and_saved(drawing, told.append, work.quiet, found).paths
    assert not [line for line in told if line.startswith("warning")], told
    return made


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a_jpeg_or_webp_draws_the_lossless_picture_again(run, tmp_path: Path, kind: str):
    run("a cat", "--seed", "7")
    run("a cat", "--seed", "7", "--image-format", kind, "--quality", "80")
    png, other = sorted((tmp_path / "out").iterdir())
    assert other.name == f"0002-seed7{images.FORMATS[kind]}"
    assert (pixels(run_again(other, tmp_path / "again", image_format="png")) == pixels(png)).all()


def test_the_bare_text_is_enough_where_the_json_is_lost(run, tmp_path: Path, components):
    """As from a web page that keeps AUTOMATIC1111's text alone."""
    run("a cat\n(face:1.2)", "--seed", "7", "--sampler", "DPM++ 2M", "--guidance", "3.3")
    first = newest(tmp_path / "out")
    with Image.open(first) as image:
        text = image.info["parameters"]
    found = recall._foreign(parsed(text), "x.png")
    assert not found.warnings and found.model == ("tiny", components.hash[:10])
    assert requests(reading.merged(found.settings))[0] == Request(
        "a cat\n(face:1.2)", seed=7, steps=2, guidance=3.3, sampler="DPM++ 2M", schedule="Karras", width=64, height=64
    )


def test_what_is_said_beside_a_picture_wins(run, tmp_path: Path):
    run("a cat", "--seed", "7")
    first = newest(tmp_path / "out")
    drawing, _ = work.gathered({"seed": "1-2", "prompt": ("a dog",)}, source=first)
    assert [(r.prompt, r.seed, r.steps) for r in requests(drawing)] == [("a dog", 1, 2), ("a dog", 2, 2)]


def saved(tmp_path: Path, **changes) -> Path:
    """A picture that says what it is told to say."""
    said = {"prompt": "a cat", "negative": "", "seed": 1, "steps": 2, "base": {"name": "emoji", "hash": "0" * 64}, "adapters": []}
    chunks = PngInfo()
    chunks.add_text(images.JSON, json.dumps(said | changes))
    Image.new("RGB", (8, 8)).save(tmp_path / "said.png", pnginfo=chunks)
    return tmp_path / "said.png"


def test_an_adapter_that_is_not_here_is_named_with_its_hash(tmp_path: Path, adapter_files: Path):
    lost = saved(tmp_path, adapters=[{"file": "lost.safetensors", "strength": 1, "sha256": "f" * 64, "hash": "ffffffffffff"}])
    with pytest.raises(SdloraError, match=r"said\.png was drawn with the adapter lost\.safetensors \(ffffffffffff\).*--adapters"):
        recall.recalled(lost, [adapter_files])


def test_an_adapter_is_found_by_its_contents_under_another_name(tmp_path: Path, adapter_files: Path):
    digest = record.hashes(adapter_files / "style.safetensors")["hash"]
    moved = saved(tmp_path, adapters=[{"file": "old name.safetensors", "strength": "mid=0", "hash": digest}])
    assert recall.recalled(moved, [adapter_files]).settings["adapter"] == (f"{adapter_files}/style.safetensors=mid=0",)


def test_a_file_of_the_right_name_and_other_contents_is_a_warning_for_a_tag(tmp_path: Path, adapter_files: Path):
    other = saved(
        tmp_path, prompt="a <lora:style:1>", adapters=[{"file": "style.safetensors", "strength": 1, "hash": "0" * 12, "tag": "style"}]
    )
    found = recall.recalled(other, [adapter_files])
    assert not found.settings["named"] and "another style (000000000000)" in found.warnings[0]


def test_another_base_is_an_error_that_names_both_unless_it_is_asked_for(tmp_path: Path, components):
    found = recall.recalled(saved(tmp_path, base={"name": "emoji", "hash": "ab" * 32}))
    with pytest.raises(SdloraError, match=rf"drawn with the base emoji \(ababababab\), and this is tiny \({components.hash[:10]}\)"):
        recall.check(found, components, {})
    (warning,) = recall.check(found, components, {"base": True})
    assert "emoji (ababababab)" in warning


def test_a_base_that_is_named_is_asked_for_even_if_it_is_the_default_one(tmp_path: Path):
    picture = saved(tmp_path, base={"name": "another", "hash": "ab" * 32})
    drawing, found = work.gathered({"base": "emoji"}, source=picture)
    assert found is not None and work._said(drawing, found) == {"base": True}
    drawing, found = work.gathered({}, source=saved(tmp_path, base={"name": "emoji", "hash": "ab" * 32}))
    assert found is not None and work._said(drawing, found) == {}


def test_prompts_from_a_file_need_none_of_the_adapters_in_the_pictures_prompt(tmp_path: Path):
    tag = {"file": "gone.safetensors", "strength": 1, "hash": "0" * 12, "tag": "gone"}
    picture = saved(tmp_path, prompt="a cat <lora:gone:1>", adapters=[tag])
    with pytest.raises(SdloraError, match="drawn with the adapter gone.safetensors"):
        work.gathered({}, source=picture)
    drawing, _ = work.gathered({"prompts": tmp_path / "prompts.txt"}, source=picture)
    assert drawing.prompt == () and drawing.named == ()


@pytest.mark.parametrize("in_a_run", [False, True])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quality": 200}, "quality is 200"),
        ({"batch": -1}, "batch is -1; it has to be at least 1"),
        ({"preview": 0}, "preview is 0"),
        ({"adapter_memory": "much"}, "is no amount of memory"),
        ({"adapter": ("broken.safetensors",)}, "broken.safetensors .* is cut off"),
        ({"init": Path("gone.png"), "width": 32, "height": 32}, "there is no picture gone.png"),
        ({"init": Path("here.png"), "mask": "gone.png"}, "there is no picture gone.png"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_said_before_there_is_a_bar(
    tmp_path: Path, tiny_base: Path, monkeypatch, settings: dict, message: str, in_a_run: bool
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("here.png")
    Path("broken.safetensors").write_bytes(b"broken")
    Path("prompts.txt").write_text("a cat", encoding="utf-8")
    what = {"prompts": Path("prompts.txt")} if in_a_run else {"prompt": ("a cat",)}
    drawing = Drawing(base=str(tiny_base), steps=2, output=tmp_path / "out", **what, **settings)
    with pytest.raises(SdloraError, match=message):
        work.drawn_and_saved(drawing, lambda text: None, lambda total: pytest.fail("a bar"))


def test_a_base_that_is_nowhere_is_asked_for(tmp_path: Path):
    with pytest.raises(SdloraError, match=r"the base v1-5 \(ababababab\), which is not known here; give it with --base"):
        recall.recalled(saved(tmp_path, base={"name": "v1-5", "hash": "ab" * 32}))
    assert recall.recalled(saved(tmp_path, base={"name": "v1-5", "hash": "ab" * 32}), given={"base": "x"}).settings["steps"] == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": "many"},
        {"base": 3},
        {"adapters": [{}]},
        {"adapters": 3},
        {"seed": "x"},
        {"original_size": 5},
        {"crop": ["a"]},
    ],
)
def test_damaged_settings_are_one_line(tmp_path: Path, changes: dict):
    with pytest.raises(SdloraError, match=r"said\.png") as error:
        recall.recalled(saved(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_a_strangers_picture_does_not_say_where_to_write_and_what_to_load(tmp_path: Path):
    said = {"output": "/etc", "prompts": "/etc/passwd", "vae": "/x", "named": [["a", "/b"]], "compile": True, "adapter": ["x"]}
    found = recall.recalled(saved(tmp_path, **said))
    assert (
        not found.settings.keys() & (said.keys() - {"named", "adapter"}) and not found.settings["named"] and not found.settings["adapter"]
    )
    assert len(found.warnings) == 5


def test_places_are_remembered_by_hash_and_forgotten_when_they_are_gone(tmp_path: Path):
    (tmp_path / "a.safetensors").touch()
    places.remember({"abcdef": tmp_path / "a.safetensors"})
    assert places.seen("abc") == tmp_path / "a.safetensors" and places.seen("abd") is None and places.seen("") is None
    (tmp_path / "a.safetensors").unlink()
    assert places.seen("abcdef") is None


A1111 = """a cat <lora:style:0.8>, (best quality:1.2),
second line
Negative prompt: ugly
Steps: 30, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 965400086, Face restoration: CodeFormer, Size: 512x768, \
Model hash: 31e35c80fc, Model: sd_xl_base_1.0, VAE hash: 735e4c3a44, VAE: vae.safetensors, Clip skip: 2, Token merging ratio: 0.5, \
Lora hashes: "style: 111111111111", Version: v1.10.1"""


def test_a_picture_of_a1111s_is_read_and_each_unknown_field_is_a_warning(tmp_path: Path, adapter_files: Path):
    image = Image.new("RGB", (8, 8))
    chunks = PngInfo()
    chunks.add_text("parameters", A1111)
    image.save(tmp_path / "a.png", pnginfo=chunks)
    with pytest.raises(SdloraError, match=r"sd_xl_base_1\.0 \(31e35c80fc\)"):
        recall.recalled(tmp_path / "a.png", [adapter_files])
    found = recall.recalled(tmp_path / "a.png", [adapter_files], {"base": "x", "vae": "y"})
    (made,) = requests(reading.merged(found.settings))
    wanted = {
        "steps": 30,
        "seed": 965400086,
        "guidance": 7.5,
        "width": 512,
        "height": 768,
        "clip_skip": 2,
        "negative": "ugly",
        "noise": "cuda",
    }
    assert {name: getattr(made, name) for name in wanted} == wanted
    assert str(made.method) == "DPM++ 2M, karras" and made.prompt == "a cat <lora:style:0.8>, (best quality:1.2),\nsecond line"
    assert [w for w in found.warnings if "Face restoration: CodeFormer" in w] and [w for w in found.warnings if "Token merging ratio" in w]
    assert [w for w in found.warnings if "another style (111111111111)" in w] and len(found.warnings) == 3


def test_a_picture_without_any_settings_says_so(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(SdloraError, match="carries no settings"):
        recall.recalled(tmp_path / "a.png")


def test_an_unknown_sampler_in_a_picture_is_named_with_the_nearest(tmp_path: Path):
    found = recall.recalled(saved(tmp_path, sampler="DPM++ 2N"))
    with pytest.raises(SdloraError, match=r"unknown sampler 'DPM\+\+ 2N'; did you mean DPM\+\+ 2M"):
        requests(reading.merged(found.settings))


def test_text_and_json_of_a_picture_say_the_same(components):
    """What the text says comes back as the settings it was written from."""
    request = Request("a cat", "blue", 5, 9, 3.5, 64, 80, clip_skip=2, emphasis="No norm", sampler="DPM2 a", eta=0.5, s_noise=1.01)
    found = recall._foreign(parsed(written(record.settings(components, request))), "x")
    (again,) = requests(reading.merged(found.settings))
    assert again.method == request.method
    same = ("prompt", "negative", "seed", "steps", "guidance", "width", "height", "clip_skip", "emphasis", "noise")
    assert {name: getattr(again, name) for name in same} == {name: getattr(request, name) for name in same} and not found.warnings


def test_hashes_are_the_files_own_where_the_vae_is_another(components):
    """AUTOMATIC1111 knows a model by its file alone; a cache of ours has to know the VAE as well."""
    with_vae = replace(components, hash="11" * 32, own_hash="22" * 32, vae_file=("vae-ft", "33" * 32))
    settings = record.settings(with_vae, Request("a"))
    assert settings["base"] == {
        **{"name": "tiny", "hash": "11" * 32, "prediction": "epsilon", "model": "22" * 32, "vae": {"name": "vae-ft", "hash": "33" * 32}}
    }
    text = parsed(written(settings)).fields
    assert (text["Model hash"], text["VAE"], text["VAE hash"]) == ("2222222222", "vae-ft", "3333333333")
    found = recall._foreign(parsed(written(settings)), "x.png")
    assert recall.check(found, with_vae, {}) == []
    (warning,) = recall.check(found, components, {"base": True})[1:]
    assert "VAE vae-ft (3333333333)" in warning and "the base's own" in warning


def test_a_hires_picture_is_drawn_again_and_its_text_says_so(run, tmp_path: Path):
    run("a cat", "--hires", "1.5", "--hires-denoise", "0.5", "--hires-upscaler", "lanczos", "--sampler", "Euler a", "--ensd", "7")
    first = newest(tmp_path / "out")
    assert (pixels(run_again(first, tmp_path / "again")) == pixels(first)).all()
    text = images.carried(first).text
    wanted = {"Denoising strength": "0.5", "Hires upscale": "1.5", "ENSD": "7", "Size": "64x64"}
    assert {key: text.fields[key] for key in wanted} == wanted
    (again,) = requests(reading.merged(recall._foreign(text, "x").settings))
    assert (again.hires, again.hires_denoise, again.upscaler.name, again.ensd) == (1.5, 0.5, "Lanczos", 7)


# --- prompts from a file, and runs that go on


def listed(path: Path, **said) -> list[Request]:
    return of_file(Drawing(prompts=path, **said))


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path):
    (tmp_path / "a.txt").write_text("\ufeffa cat\n\n  # a dog \nκαι\r\n")
    assert [(r.prompt, r.seed) for r in listed(tmp_path / "a.txt", seed="3-4")] == [
        *[("a cat", 3), ("a cat", 4), ("# a dog", 3), ("# a dog", 4), ("και", 3), ("και", 4)],
    ]


def test_a_json_line_says_any_setting_of_its_own(tmp_path: Path, adapter_files: Path):
    lines = [
        {"prompt": "a"},
        {"prompt": "b", "seed": 9, "steps": 4},
        {"prompt": ["c", "d"], "adapter": ["style.safetensors=0.5"], "seed": "1,2"},
    ]
    path = adapter_files / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    found = listed(path, steps=6)
    assert [(r.prompt, r.seed, r.steps) for r in found] == [("a", 1, 6), ("b", 9, 4), ("c", 1, 6), ("c", 2, 6), ("d", 1, 6), ("d", 2, 6)]
    assert found[-1].adapters[0][0] == str(adapter_files / "style.safetensors")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": ', r"not JSON in line 2 of .*a\.jsonl"),
        ("a.jsonl", '{"prompt": "a", "stpes": 3}', "unknown setting stpes in line 1 of .*did you mean steps"),
        ("a.jsonl", '{"prompt": "a", "base": "x"}', "base in line 1 of .* holds for all pictures"),
        ("a.jsonl", '["a"]', "no JSON object in line 1"),
        ("a.jsonl", '{"seed": 1}', "no prompt in line 1"),
        ("a.txt", "a\nb <lora:", "in line 2"),
        ("a.txt", "\n \n", "has no prompts"),
        ("b.txt", None, "cannot read the prompts"),
    ],
)
def test_a_mistake_in_a_prompt_file_names_its_line(tmp_path: Path, name: str, text: str | None, message: str):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(SdloraError, match=message) as error:
        listed(tmp_path / name)
    assert "\n" not in str(error.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_draws_what_is_missing_and_nothing_twice(tmp_path: Path, tiny_base: Path):
    (tmp_path / "a.txt").write_text("a cat\na dog\na cat\n")
    drawing = Drawing(prompts=tmp_path / "a.txt", base=str(tiny_base), steps=1, guidance=1.0, seed="1-2", output=tmp_path / "out")
    assert [path.name for path in carry_out(drawing)] == ["0001-seed1.png", "0002-seed2.png", "0003-seed1.png", "0004-seed2.png"]
    assert names(tmp_path / "out")[4:] == ["manifest.json"]
    data = {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")}
    (tmp_path / "out" / "0003-seed1.png").unlink()
    (tmp_path / "a.txt").write_text("a sun\na cat\na dog\n")  # a new prompt in front: the others keep their names
    assert [path.name for path in carry_out(drawing)] == ["0005-seed1.png", "0006-seed2.png", "0003-seed1.png"]
    assert all((tmp_path / "out" / name).read_bytes() == old for name, old in data.items() if name != "manifest.json")
    assert carry_out(drawing) == []


def test_a_full_disk_in_the_middle_of_a_run_says_how_far_it_came_and_loses_nothing(tmp_path: Path, tiny_base: Path, monkeypatch):
    (tmp_path / "a.txt").write_text("a cat\na dog\na sun\n")
    drawing = Drawing(prompts=tmp_path / "a.txt", base=str(tiny_base), steps=1, guidance=1.0, output=tmp_path / "out")
    real, calls = images.save, []

    def full(image, path, *rest):
        calls.append(path)
        if len(calls) == 2:
            raise SdloraError(f"cannot write {path}: No space left on device; make room")
        real(image, path, *rest)

    monkeypatch.setattr(images, "save", full)
    with pytest.raises(SdloraError, match=r"No space left.* \(1 of 3 pictures are drawn; the same command goes on\)"):
        carry_out(drawing)
    assert names(tmp_path / "out") == ["0001-seed1.png", "manifest.json"]
    assert [path.name for path in carry_out(drawing)] == ["0002-seed1.png", "0003-seed1.png"]


def test_a_picture_that_turns_into_nan_leaves_the_others_of_the_run_in_peace(tmp_path: Path, tiny_base: Path, monkeypatch):
    (tmp_path / "a.txt").write_text("a cat\na dog\na sun\n")
    drawing = Drawing(prompts=tmp_path / "a.txt", base=str(tiny_base), steps=1, guidance=1.0, batch=1, output=tmp_path / "out")
    real = generation.generate

    def spoilt(components, wanted, **ways):
        yield from real(components, [r for r in wanted if r.prompt != "a dog"], **ways)
        if any(r.prompt == "a dog" for r in wanted):
            raise SdloraError("the picture of 'a dog' turned into NaN")

    monkeypatch.setattr(generation, "generate", spoilt)
    with pytest.raises(SdloraError, match=r"'a dog' turned into NaN \(2 of 3 pictures are drawn, 1 are not\)"):
        carry_out(drawing)
    assert names(tmp_path / "out") == ["0001-seed1.png", "0003-seed1.png", "manifest.json"]


def test_an_interrupted_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path: Path, tiny_base: Path, adapter_files: Path):
    """Whole batches are drawn again, so that even the rounding that neighbours with other adapters cause is the same."""
    lines = [{"prompt": "a cat", "seed": i, "adapter": [f"{name}.safetensors={0.2 * i}"]} for i in (1, 2, 3) for name in ("style", "text")]
    (adapter_files / "run.jsonl").write_text("\n".join(map(json.dumps, lines)))
    drawing = Drawing(prompts=adapter_files / "run.jsonl", base=str(tiny_base), steps=2, output=tmp_path / "out")
    before = {path.name: path.read_bytes() for path in carry_out(drawing)}
    for name in ("0002-seed1.png", "0003-seed2.png", "0006-seed3.png"):
        (tmp_path / "out" / name).unlink()
    assert len(carry_out(drawing)) == 3
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 1, "pictures": {"a": {}}}', '{"version": 2, "pictures": {}}'])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, text: str):
    from sdlora.drawing import runs

    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(SdloraError, match=r"manifest\.json") as error:
        runs.read(tmp_path)
    assert "\n" not in str(error.value)


def test_shares_of_a_crew_are_everything_once_and_in_order():
    from sdlora.drawing.crew import Crew

    for size in (1, 2, 3, 7):
        shares = [Crew("cpu", rank, size).share(range(17)) for rank in range(size)]
        assert [i for share in shares for i in share] == list(range(17))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


LOGGING = """
import os, signal, sys
from pathlib import Path
from sdlora import cli, images

plain = images.save

def save(image, path, *rest):
    plain(image, path, *rest)
    with open(os.environ["LOG"], "a") as log:
        log.write(f"{os.environ['RANK']} {Path(path).name}\\n")
    if os.environ["FAILS"] and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

images.save = save
cli.program(["generate", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_two_processes_share_a_run_and_where_one_is_killed_the_next_two_draw_the_rest(tmp_path: Path, tiny_base: Path):
    (tmp_path / "a.txt").write_text("".join(f"a cat {i}\n" for i in range(9)))
    (tmp_path / "drawing_log.py").write_text(LOGGING)
    how = {"prompts": tmp_path / "a.txt", "base": tiny_base, "steps": 2, "guidance": 1, "device": "cpu", "batch": 2}
    words = [word for name, value in how.items() for word in (f"--{name}", str(value))]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "drawing_log.py")]

    def draw(way: list[str], output: str, fails: str = "") -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LOG": str(tmp_path / "log"), "FAILS": fails}
        program = [sys.executable, *way, *words, "--output", str(tmp_path / output)]
        return subprocess.run(program, env=environment, capture_output=True, text=True)

    one = draw([str(ROOT / "infer" / "generate.py")], "one")
    killed = draw(torchrun, "two", "killed")
    assert one.returncode == 0 and killed.returncode != 0, one.stderr + killed.stderr
    assert re.findall("^error: .*", killed.stderr, re.MULTILINE) == [
        "error: one of the 2 processes was killed, or crashed; the same command goes on from what is saved"
    ]
    assert "[rank" not in killed.stderr, "a traceback of ours"
    before = (tmp_path / "log").read_text().split()[1::2]
    assert len([name for name in before if (tmp_path / "two" / name).exists()]) == len(before) < 9
    rest = draw(torchrun, "two")
    assert rest.returncode == 0, rest.stderr
    bytes_of_one, bytes_of_two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert len(bytes_of_one) == 10 and bytes_of_one == bytes_of_two
    log = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(name for _, name in log) == sorted(name for name in bytes_of_one if name.endswith(".png")), "each drawn once"
    assert {rank for rank, _ in log[len(before) :]} == {"0", "1"}
    assert all(rest.stdout.count(name) == 1 for _, name in log[len(before) :]), "the second process says nothing of its own"


def test_there_is_no_bar_where_nothing_is_left_to_draw(capsys):
    from sdlora.commands.drawing_options import bar

    with bar(0) as move:
        move(0)
    nothing = capsys.readouterr().err
    with bar(2) as move:
        move(2)
    assert nothing == "" and "2/2 steps" in capsys.readouterr().err
