"""A person's first run on a folder as it comes: what it says, and that the check before it says the same."""

import json

import pytest
from PIL import Image

from sdlora.commands import dataset, train
from sdlora.errors import SdloraError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "10_Jörgs Bilder (neu)"
    place.mkdir()
    for number, size in enumerate([(64, 48), (48, 64), (200, 60)]):
        Image.new("RGB", size, (80 * number, 200, 90)).save(place / f"Foto {number} für Anna.jpg")
    return place


@pytest.fixture
def check(command_line):
    call = command_line(dataset, "dataset")
    return lambda *words: json.loads("{" + call("check", *words, "--json", "-").partition("{")[2])


@pytest.fixture
def plan(command_line):
    call = command_line(train, "train")
    return lambda *words: call(*words, "--dry-run")


def test_a_folder_without_captions_is_checked_as_it_would_be_trained_on(folder, check, plan):
    found = check(folder)
    assert found["images"] == 3 and not [one for one in found["findings"] if one["kind"] == "missing"]
    assert "every picture is called 'Jörgs Bilder neu'" in plan(folder)
    (folder / "Foto 0 für Anna.txt").write_bytes(b"ein Bild\r\n")
    assert [one["files"] for one in check(folder)["findings"] if one["kind"] == "missing"] == []  # the folder's name is one: 10_…


def test_the_check_of_a_folder_does_not_say_that_a_caption_given_is_another(folder, command_line):
    call = command_line(dataset, "dataset")
    assert "calls every picture 'Jörgs Bilder neu'" in call("check", folder)
    assert "calls every picture" not in call("check", folder, "caption=ein Bild")


def test_captions_of_a_program_that_shouts_are_read(folder, plan, check):
    for number in range(3):
        (folder / f"Foto {number} für Anna.TXT").write_bytes(f"\ufeffzorbot number {number}\r\n".encode())
    assert "trigger 'zorbot number', which is in every caption" in plan(folder)
    (folder / "alone.TXT").write_text("nobody's")
    assert [one["files"] for one in check(folder)["findings"] if one["kind"] == "orphan"] == [["alone.TXT"]]


def test_pictures_of_a_telephone_are_told_of_unless_a_copy_lies_beside_them(folder, plan, check):
    for name in ("IMG_1.HEIC", "IMG_1.jxl", "Foto 0 für Anna.HEIC"):
        (folder / name).write_bytes(b"ftypheic")
    (folder / "broken.png").write_bytes(b"")
    said = plan(folder)
    (line,) = [line for line in said.splitlines() if "HEIC" in line]
    assert (
        line.startswith("left out ") and "IMG_1.HEIC is not a readable image (Pillow does not read .heic; save it as PNG or JPEG)" in line
    )
    assert "broken.png is not a readable image" in said and "images   3 in" in said
    assert [one["files"] for one in check(folder)["findings"] if one["kind"] == "unreadable"] == [
        ["IMG_1.HEIC"],
        ["IMG_1.jxl"],
        ["broken.png"],
    ]


def test_a_jpeg_as_windows_names_it_is_a_picture(folder, plan):
    (folder / "Foto 0 für Anna.jpg").rename(folder / "Foto 0 für Anna.JFIF")
    assert "images   3 in" in plan(folder)


@pytest.mark.parametrize(
    ("name", "words"), [("a.png", "is no folder and no settings file"), ("a.safetensors", "for an adapter write --from")]
)
def test_a_file_that_is_no_settings_file_is_not_taken_for_one(tmp_path, plan, name, words):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SdloraError, match=words):
        plan(tmp_path / name)
