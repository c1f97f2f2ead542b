"""Pictures that were made from pictures are drawn again: their init picture and mask are found by their contents, or asked for."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora import infotext
from sdlora.commands import generate as command
from sdlora.drawing import Drawing, Grid, prompt_files, reading, recall, requests, work
from sdlora.drawing.axes import Axis
from sdlora.drawing.settings import NONE
from sdlora.errors import SdloraError
from sdlora.generation import Request
from sdlora.generation.sources import described
from sdlora.images import read_settings, save_png

pytestmark = pytest.mark.usefixtures("forgetful")

A1111 = (
    "a cat\nSteps: 4, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x516, Variation seed: 8, Variation seed strength: 0.2, ENSD: 31337"
)


@pytest.fixture
def run(command_line, tiny_base: Path):
    call = command_line(command, "generate")
    return lambda *words: call("--base", tiny_base, "--steps", 2, *words)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    mask = Image.new("L", (48, 40))
    mask.paste(255, (16, 0, 32, 40))
    mask.save(tmp_path / "mask.png")
    return tmp_path / "photo.png"


def carrying(path: Path, text: str) -> Path:
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    return path


def test_an_inpainted_picture_is_drawn_again_bit_for_bit_and_says_the_same_of_itself(run, photo: Path, tmp_path: Path):
    mask = photo.with_name("mask.png")
    inpainting = ["--mask", mask, "--masked-content", "noise", "--denoise", "0.9", "--resize", "fit", "--variation-seed", "8"]
    run("a cat", "--init", photo, *inpainting, "--variation-strength", "0.2", "--output", tmp_path / "one")
    first = tmp_path / "one" / "0001-seed1.png"
    run("--from", first, "--output", tmp_path / "two")
    assert (tmp_path / "two" / "0001-seed1.png").read_bytes() == first.read_bytes()


def test_a_hires_picture_is_drawn_again_bit_for_bit(run, tmp_path: Path):
    hires = ["--hires", "1.5", "--hires-steps", "1", "--hires-upscaler", "lanczos", "--sampler", "Euler a", "--ensd", "31337"]
    run("a cat", *hires, "--output", tmp_path / "one")
    first = tmp_path / "one" / "0001-seed1.png"
    run("--from", first, "--output", tmp_path / "two")
    assert (tmp_path / "two" / "0001-seed1.png").read_bytes() == first.read_bytes()


def test_an_init_picture_that_is_gone_is_asked_for_and_another_one_of_its_name_is_not_taken(run, photo: Path, tmp_path: Path):
    run("a cat", "--init", photo, "--output", tmp_path / "one")
    first = tmp_path / "one" / "0001-seed1.png"
    assert recall.recalled(first).settings["init"] == photo
    kept = photo.rename(tmp_path / "kept.png")
    Image.new("RGB", (48, 40)).save(photo)
    with pytest.raises(SdloraError, match=r"with the init photo\.png \(sha256 \w{10}\), which is not to be found; give it with --init"):
        recall.recalled(first)
    assert "init" not in recall.recalled(first, given={"init": kept}).settings
    (tmp_path / "one" / "photo.png").write_bytes(kept.read_bytes())
    assert recall.recalled(first).settings["init"] == tmp_path / "one" / "photo.png"


def test_the_text_of_a_hires_picture_of_a1111s_is_read(tmp_path: Path):
    text = f"{A1111}, Denoising strength: 0.5, Hires upscale: 2, Hires steps: 3, Hires upscaler: Latent (nearest-exact)"
    found = recall.recalled(carrying(tmp_path / "a.png", text), given={"base": "x"})
    (made,) = requests(reading.merged(found.settings))
    assert (made.hires, made.hires_denoise, made.hires_steps, made.upscaler.name) == (2.0, 0.5, 3, "Latent (nearest-exact)")
    assert (made.variation, made.ensd, made.floor, made.denoise) == ((8, 0.2), 31337, True, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [("Denoising strength: 0.5", "does not say which; give it with --init"), ("Mask blur: 4, Masked content: latent noise", "--mask")],
)
def test_a_picture_that_a1111_made_from_another_asks_for_that(tmp_path: Path, fields: str, message: str):
    picture = carrying(tmp_path / "a.png", f"{A1111}, {fields}")
    with pytest.raises(SdloraError, match=message):
        recall.recalled(picture, given={"base": "x"})
    found = recall.recalled(picture, given={"base": "x", "init": "photo.png", "mask": "mask.png"})
    assert found.settings.get("denoise", found.settings.get("masked_content")) in (0.5, "noise")


def test_relative_init_pictures_of_a_settings_file_start_at_its_folder(tmp_path: Path):
    (tmp_path / "drawing.toml").write_text('init = "photo.png"\nmask = "alpha"\n')
    found = reading.from_toml(tmp_path / "drawing.toml")
    assert found == {"init": tmp_path / "photo.png", "mask": "alpha"}


def recording(path: Path, **settings) -> Path:
    """A picture of sdlora's that says so of itself."""
    base = {"prompt": "a cat", "seed": 4, "steps": 2, "base": {"name": "emoji"}, "adapters": []}
    save_png(Image.new("RGB", (8, 8)), path, base | settings)
    return path


def test_none_takes_back_what_a_picture_says_and_all_that_has_no_effect_without(photo: Path, tmp_path: Path):
    hires = recording(
        tmp_path / "hires.png", hires=2.0, hires_denoise=0.4, hires_steps=5, hires_upscaler="Lanczos", eta=0.5, sampler="Euler a"
    )
    (one,) = requests(work.gathered({"hires": NONE, "eta": NONE}, source=hires)[0])
    assert one == Request("a cat", seed=4, steps=2, sampler="Euler a")
    said = {"init": described(photo), "mask": described(photo.with_name("mask.png")), "mask_blur": 2.0, "masked_content": "fill"}
    inpainted = recording(tmp_path / "inpainted.png", **said, denoise=0.6, resize="fit", background="red", exact_steps=True)
    (one,) = requests(work.gathered({"mask": NONE}, source=inpainted)[0])
    assert (one.init, one.mask, one.mask_blur, one.masked_content, one.denoise, one.resize) == (photo, None, None, "original", 0.6, "fit")
    for gone in (photo, photo.with_name("mask.png")):  # what is taken back is not looked for
        gone.unlink()
    assert requests(work.gathered({"init": NONE}, source=inpainted)[0]) == [Request("a cat", seed=4, steps=2)]


def test_none_is_said_in_every_place_that_has_settings(tmp_path: Path):
    (tmp_path / "a.toml").write_text('prompt = "a dog"\nhires = 2.0\nhires_steps = 3\nmask = "none"\nwidth = "none"\n')
    assert work.gathered({"hires": NONE}, tmp_path / "a.toml")[0] == Drawing(prompt=("a dog",))
    (tmp_path / "a.jsonl").write_text('{"prompt": "a dog", "hires": "none"}\n{"prompt": "a dog"}\n')
    (tmp_path / "many.toml").write_text('prompts = "a.jsonl"\n')
    again = work.gathered({"prompts": NONE}, tmp_path / "many.toml", recording(tmp_path / "old.png"))[0]
    assert (again.prompt, again.prompts) == (("a cat",), None)
    drawing = Drawing(prompts=tmp_path / "a.jsonl", hires=1.5, hires_steps=3)
    assert [(r.hires, r.hires_steps) for r in prompt_files.requests(drawing)] == [(None, None), (1.5, 3)]
    cells = Grid(Drawing(prompt=("a dog",), hires_steps=3, hires=2.0), Axis("hires", ("none", 2.0))).cells()
    assert [request.hires for _, request in cells] == [None, 2.0]
    with pytest.raises(SdloraError, match="steps is 'none'"):  # it always has a number
        reading.checked({"steps": "none"}, "here", tmp_path)
    with pytest.raises(SdloraError, match="hires_steps has no effect without hires"):  # said in one breath, it is a mistake
        requests(reading.merged({"prompt": ("a dog",), "hires": NONE, "hires_steps": 3}))


def test_on_the_command_line_none_is_as_good_as_a_number_or_a_path(run, tmp_path: Path):
    hires = recording(tmp_path / "hires.png", hires=2.0, hires_steps=5, variation_seed=3, variation_strength=0.5)
    run("--from", hires, "--hires", "none", "--variation-seed", "none", "--init", "none", "--steps", 1, "--output", tmp_path / "out")
    found = read_settings(tmp_path / "out" / "0001-seed4.png")
    assert found["width"] == 64 and not {"hires", "hires_steps", "variation_seed", "variation_strength", "init"} & found.keys()


def test_how_an_init_picture_was_fitted_stands_in_the_text_and_is_read_there(tmp_path: Path):
    said = {"denoise": 0.5, "resize": "fit", "background": "#ff0000", "exact_steps": True, "masked_content": "fill", "soft_mask": True}
    settings = {"prompt": "a cat", "seed": 1, "steps": 4, "width": 8, "height": 8, "base": {"name": "emoji"}, "version": "sdlora 1", **said}
    text = infotext.written(settings)
    assert "Exact steps: True, Resize mode: Resize and fill, Background: #ff0000" in text and "Masked content: fill" in text
    given = {"init": tmp_path / "a.png", "mask": tmp_path / "b.png"}
    found = recall.recalled(carrying(tmp_path / "bare.png", text), given=given)
    assert {name: found.settings[name] for name in said} == said and not found.warnings
    plain = infotext.written(settings | {"resize": "crop", "exact_steps": None, "background": None})
    assert not any(word in plain for word in ("Exact", "Resize", "Background:"))
