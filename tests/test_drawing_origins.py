"""Pictures that were made from pictures are drawn again: their init picture and mask are found by their contents, or asked for."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora.commands import generate as command
from sdlora.drawing import reading, recall, requests
from sdlora.errors import SdloraError

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
