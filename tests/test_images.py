"""PNGs and their settings, and the contact sheet."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdlora.errors import SdloraError
from sdlora.images import infotext, read_settings, save_png
from sdlora.sheet import SIZES, contact_sheet, draw_sheet, enlarged, fitted, font

SETTINGS = {
    "prompt": "a cat face, flat emoji",
    "negative": "blue: very",
    "seed": 2**40 + 1,
    "steps": 20,
    "sampler": "Euler",
    "schedule": "Uniform",
    "guidance": 5.0,
    "width": 64,
    "height": 96,
    "base": {"name": "emoji", "hash": "0123456789abcdef"},
    "adapters": [{"file": "style one.safetensors", "strength": 0.8, "sha256": "ff" * 32, "hash": "cafe00cafe00"}],
    "version": "sdlora 0.1.0",
}


def picture(width: int = 64, height: int = 64, colour: str = "red") -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def test_settings_come_back_from_the_png_exactly(tmp_path: Path):
    save_png(picture(), tmp_path / "a.png", SETTINGS)
    assert read_settings(tmp_path / "a.png") == SETTINGS


@pytest.mark.parametrize("prompt", ["a café", "猫の絵文字 🐱", 'quoted "words", \\ and\nlines', "", "ÿ\u0100"])
def test_any_prompt_survives(tmp_path: Path, prompt: str):
    save_png(picture(), tmp_path / "a.png", SETTINGS | {"prompt": prompt})
    assert read_settings(tmp_path / "a.png")["prompt"] == prompt
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["parameters"].startswith(prompt)


def test_the_pixels_are_stored_without_loss(tmp_path: Path):
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    save_png(image, tmp_path / "a.png", SETTINGS)
    assert Image.open(tmp_path / "a.png").tobytes() == image.tobytes()


def test_the_text_is_what_a1111_writes():
    assert infotext(SETTINGS) == (
        "a cat face, flat emoji <lora:style one:0.8>\n"
        "Negative prompt: blue: very\n"
        "Steps: 20, Sampler: Euler, Schedule type: Uniform, CFG scale: 5, Seed: 1099511627777, Size: 64x96, "
        'Model hash: 0123456789, Model: emoji, Lora hashes: "style one: cafe00cafe00", Version: sdlora 0.1.0'
    )


def test_without_adapters_and_negative_prompt_their_words_are_absent():
    text = infotext({"prompt": "a cat", "seed": 0, "steps": 3})
    assert text == "a cat\nSteps: 3, Seed: 0"


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n broken"])
def test_what_is_no_picture_is_refused_in_one_line(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(SdloraError, match=r"a\.png") as error:
        read_settings(tmp_path / "a.png")
    assert "\n" not in str(error.value)


def test_a_picture_of_another_program_has_no_settings(tmp_path: Path):
    picture().save(tmp_path / "a.png")
    with pytest.raises(SdloraError, match="no settings"):
        read_settings(tmp_path / "a.png")


def test_a_failed_write_leaves_nothing(tmp_path: Path):
    with pytest.raises(TypeError):
        save_png(picture(), tmp_path / "a.png", {"prompt": "x", "file": Path("not json")})
    assert list(tmp_path.iterdir()) == []


def test_small_pictures_grow_by_whole_numbers():
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    large = enlarged(image)
    assert large.size == (192, 192)
    assert large.resize((64, 64), Image.Resampling.NEAREST).tobytes() == image.tobytes()
    assert len(set(large.crop((3, 3, 6, 6)).getdata())) == 1


def test_large_pictures_shrink_and_keep_their_shape():
    assert enlarged(picture(768, 512)).size == (192, 128)


def test_every_picture_of_a_sheet_is_on_it_whole_and_in_its_place():
    rows = [[picture(colour=colour) for colour in row] for row in (["red", "lime", "blue"], ["cyan", "magenta", "yellow"])]
    sheet = np.asarray(draw_sheet(rows, ["first row", "second row"], ["one", "two", "three"], "A title"))
    corners = []
    for cell in (cell for row in rows for cell in row):
        ys, xs = np.nonzero((sheet == cell.getpixel((0, 0))).all(-1))
        assert len(xs) == 192 * 192 and np.ptp(xs) == np.ptp(ys) == 191
        corners.append((xs.min(), ys.min()))
    (ax, ay), (bx, by), (cx, _), (dx, dy), *_ = corners
    assert ay == by < dy and ax == dx < bx < cx
    assert (sheet[0, 0] == 255).all()


@pytest.mark.parametrize("text", ["short", "a much longer label that needs several lines", "x" * 300, "", "a\nb", "wörter 猫 " * 40])
def test_a_label_always_fits_its_place(text: str):
    block = fitted(text, 150, 60)
    assert block.width <= 150 and block.height <= 60 and block.size in SIZES


def test_a_label_that_fits_is_complete():
    text = "a cat face with a crown, flat emoji on a dark background"
    assert " ".join(fitted(text, 150, 192).lines) == text


def test_greek_letters_are_drawn_and_not_as_the_box_of_an_unknown_one():
    glyphs = {bytes(font(15).getmask(letter)) for letter in ("η", "α", "σ", "\U000f1234")}
    assert len(glyphs) == 4


def test_rows_may_be_ragged_and_places_empty(tmp_path: Path):
    contact_sheet([[picture(), None], [picture()]], [], [], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 2 * 192 and sheet.height > 2 * 192


def test_settings_are_plain_json(tmp_path: Path):
    save_png(picture(), tmp_path / "a.png", SETTINGS)
    with Image.open(tmp_path / "a.png") as image:
        assert json.loads(image.info["sdlora"]) == SETTINGS
