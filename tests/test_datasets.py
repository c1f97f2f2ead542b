"""The sample folders are what datasets/README.md says: captioned, large enough, licensed and small on disk."""

import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
DATASETS = ROOT / "datasets"
COUNTS = {"high-contrast": range(24, 41), "robot": range(10, 21), "octopus": range(10, 21)}  # the bounds
TRIGGERS = {"high-contrast": "sks style", "robot": "zorbot robot", "octopus": "blimpo octopus"}


def pictures(folder: str) -> list[Path]:
    return sorted((DATASETS / folder).glob("*.png"))


def caption(path: Path) -> str:
    return path.with_suffix(".txt").read_text(encoding="utf-8").strip()


def test_these_are_all_the_folders():
    assert {path.name for path in DATASETS.iterdir() if path.is_dir()} == COUNTS.keys()


@pytest.mark.parametrize("folder", COUNTS)
def test_every_picture_has_its_caption_and_its_size(folder):
    assert len(pictures(folder)) in COUNTS[folder]
    for path in pictures(folder):
        assert TRIGGERS[folder] in caption(path), path
        with Image.open(path) as image:
            assert image.size == (512, 512), path
            low, high = image.convert("L").getextrema()
        assert low < 100 and high == 255, f"{path} is blank or not on white"


@pytest.mark.parametrize("folder", COUNTS)
def test_nothing_lies_beside_the_pictures_but_captions_and_the_licence(folder):
    stems = {path.stem for path in pictures(folder)}
    names = {f"{stem}{suffix}" for stem in stems for suffix in (".png", ".txt")} | {"LICENSE"}
    assert {path.name for path in (DATASETS / folder).iterdir()} == names


@pytest.mark.parametrize("folder", COUNTS)
def test_the_licence_names_author_and_terms(folder):
    text = (DATASETS / folder / "LICENSE").read_text(encoding="utf-8")
    assert "Microsoft Corporation" in text and "Permission is hereby granted" in text
    assert folder == "high-contrast" or "Google Inc" in text and "Apache License, Version 2.0" in text


def test_the_weights_and_the_code_are_licensed():
    text = (ROOT / "sdlora" / "assets" / "emoji" / "LICENSE.md").read_text(encoding="utf-8")
    assert "Fluent Emoji" in text and "Noto Emoji" in text and "Permission is hereby granted" in text
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_style_folder_leaves_out_what_the_demo_draws():
    from sdlora.demo.scenes import ROWS

    shown = " ".join(caption(path) for path in pictures("high-contrast"))
    assert ROWS and not [row.thing for row in ROWS if re.search(rf"\b{row.thing}\b", shown)]


def test_no_two_pictures_are_the_same():
    everything = [path.read_bytes() for folder in COUNTS for path in pictures(folder)]
    assert len(set(everything)) == len(everything)


def test_the_folders_stay_small():
    assert sum(path.stat().st_size for path in DATASETS.rglob("*") if path.is_file()) < 3_000_000
