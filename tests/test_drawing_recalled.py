"""A picture is drawn again from the settings it carries, ours or a stranger's; what is lost or another is named."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora import images
from sdlora.commands import generate as command
from sdlora.drawing import places, reading, recall, requests, work
from sdlora.errors import SdloraError
from sdlora.generation import Request, record
from sdlora.infotext import parsed, written

pytestmark = pytest.mark.usefixtures("forgetful")


@pytest.fixture
def run(command_line, tiny_base: Path, tmp_path: Path):
    call = command_line(command, "generate")
    return lambda *words: call("--base", tiny_base, "--steps", 2, "--output", tmp_path / "out", *words)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def newest(folder: Path) -> Path:
    return max(folder.glob("[0-9]*"))


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
