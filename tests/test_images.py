"""PNGs and their settings, and the contact sheet."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import piexif
import piexif.helper
import pytest
from PIL import Image
from said import SETTINGS

from sdlora import images
from sdlora.errors import SdloraError
from sdlora.images import carried, read_settings, save, save_png
from sdlora.infotext import parsed
from sdlora.infotext import written as infotext
from sdlora.sheet import SIZES, contact_sheet, draw_sheet, enlarged, fitted, font


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


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp"])
def test_every_format_carries_the_settings_and_the_text(tmp_path: Path, ending: str):
    wanted = SETTINGS | {"prompt": '猫 🐱 "quoted",\nsecond line', "guidance": 1 / 3}
    save(picture(), tmp_path / f"a.{ending}", wanted)
    found = carried(tmp_path / f"a.{ending}")
    assert found.settings == wanted
    assert found.text.prompt == '猫 🐱 "quoted",\nsecond line <lora:style one:0.8>' and found.text.fields["CFG scale"] == str(1 / 3)


def test_the_exif_is_byte_for_byte_what_a1111_writes_with_piexif():
    text = infotext(SETTINGS | {"prompt": "a cat 🐱"})
    comment = {piexif.ExifIFD.UserComment: piexif.helper.UserComment.dump(text, encoding="unicode")}
    assert images._tiff({images.COMMENT: images.UNICODE + text.encode("utf-16-be")}) == piexif.dump({"Exif": comment})


def test_a_picture_that_a1111_saved_with_piexif_is_read(tmp_path: Path):
    text = infotext(SETTINGS)
    picture().save(tmp_path / "a.jpg")
    comment = {piexif.ExifIFD.UserComment: piexif.helper.UserComment.dump(text, encoding="unicode")}
    piexif.insert(piexif.dump({"Exif": comment}), str(tmp_path / "a.jpg"))
    found = carried(tmp_path / "a.jpg")
    assert found.settings is None and found.text == parsed(text)


def test_a_prompt_beyond_what_a_jpeg_holds_loses_the_json_first_and_is_then_refused(tmp_path: Path):
    save(picture(), tmp_path / "a.jpg", SETTINGS | {"prompt": "cat " * 6000})
    found = carried(tmp_path / "a.jpg")
    assert found.settings is None and found.text.fields["Seed"] == str(SETTINGS["seed"])
    with pytest.raises(SdloraError, match="too long for a JPEG.*png or webp"):
        save(picture(), tmp_path / "b.jpg", SETTINGS | {"prompt": "cat " * 9000})
    save(picture(), tmp_path / "b.webp", SETTINGS | {"prompt": "cat " * 9000})
    assert len(read_settings(tmp_path / "b.webp")["prompt"]) == 36000
    assert not (tmp_path / "b.jpg").exists()


def test_quality_makes_files_smaller_and_is_refused_where_it_does_nothing(tmp_path: Path):
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    for ending in ("jpg", "webp"):
        for quality in (20, None):
            save(image, tmp_path / f"{quality}.{ending}", SETTINGS, quality)
        assert (tmp_path / f"20.{ending}").stat().st_size < (tmp_path / f"None.{ending}").stat().st_size
    for path, quality in (("a.png", 90), ("a.jpg", 0), ("a.webp", 101)):
        with pytest.raises(SdloraError, match="quality"):
            save(image, tmp_path / path, SETTINGS, quality)
    with pytest.raises(SdloraError, match="'gif'|'.gif'"):
        save(image, tmp_path / "a.gif", SETTINGS)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(SdloraError, match=r"cannot write .*a\.png: No space left on device; .*make room"):
        save(picture(), tmp_path / "a.png", SETTINGS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_sd_parsers_reads_all_three(tmp_path: Path, ending: str):
    from sd_parsers import ParserManager

    save(picture(), tmp_path / f"a.{ending}", SETTINGS)
    found = ParserManager().parse(tmp_path / f"a.{ending}")
    (sampler,) = found.samplers
    assert [p.value for p in found.prompts] == ["a cat face, flat emoji <lora:style one:0.8>"]
    assert [p.value for p in found.negative_prompts] == ["blue: very"]
    assert sampler.name == "Euler"
    assert sampler.parameters == {"scheduler": "Uniform", "cfg_scale": "5", "seed": str(SETTINGS["seed"]), "steps": "20"}
    assert [(m.name, m.hash) for m in found.models] == [("emoji", "0123456789")]


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_sd_prompt_reader_reads_all_three(tmp_path: Path, ending: str):
    reader = pytest.importorskip("sd_prompt_reader.image_data_reader")

    save(picture(), tmp_path / f"a.{ending}", SETTINGS)
    found = reader.ImageDataReader(tmp_path / f"a.{ending}")
    assert (found.tool, found.positive, found.negative) == ("A1111 webUI", "a cat face, flat emoji <lora:style one:0.8>", "blue: very")
    wanted = {"model": "emoji", "sampler": "Euler", "seed": str(SETTINGS["seed"]), "cfg": "5", "steps": "20", "size": "64x96"}
    assert found.parameter == wanted
    assert "Model hash: 0123456789" in found.setting


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
