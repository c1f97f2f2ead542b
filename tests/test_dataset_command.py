"""sdlora dataset check finds everything that is wrong with a folder; sdlora cache shows and prunes; nasty pictures are trained on."""

import json
import os
import time
from pathlib import Path

import nasty
import pytest
import torch
from PIL import Image

from sdlora import cli, data, training
from sdlora.commands import cache as cache_command
from sdlora.commands import dataset
from sdlora.data import Cache, check, sizes
from sdlora.data.check import KINDS, NOTES
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nasty pictures, and captions that are wrong in every way."""
    place = nasty.write(tmp_path_factory.mktemp("nasty") / "pictures")
    texts = place / "texts"
    texts.mkdir()
    for number, name in enumerate(("none", "empty", "latin", "long", "longest", "both", "untold", "same", "again", "resized", "white"), 50):
        nasty.scene(number).save(texts / f"{name}.png")
        (texts / f"{name}.txt").write_text(f"{name}, sks style")
    (texts / "none.txt").unlink()
    (texts / "empty.txt").write_text(" \n")
    (texts / "latin.txt").write_bytes("café".encode("latin-1"))
    (texts / "long.txt").write_text("sks style, " + "a cat face, " * 25)
    (texts / "longest.txt").write_text("sks style, " + "a cat face, " * 90)
    (texts / "both.caption").write_text("x")
    (texts / "untold.txt").write_text("nobody")
    (texts / "lost.txt").write_text("of no picture")
    (texts / "again.png").write_bytes((texts / "same.png").read_bytes())
    Image.open(texts / "same.png").resize((200, 140)).save(texts / "resized.png")
    Image.new("RGB", (64, 64), "white").save(texts / "white.png")
    Image.new("L", (96, 64)).save(texts / "same-masklabel.png")
    nasty.scene(80).save(texts / "same.jpg")
    nasty.scene(81, 60, 40).save(texts / "small.png")
    (texts / "small.txt").write_text("small, sks style")
    return place


@pytest.fixture
def run(command_line):
    return command_line(dataset, "dataset")


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
    """What a check finds, as JSON."""
    path = tmp_path_factory.mktemp("report") / "report.json"
    assert cli.main(["dataset", "check", str(folder), "base=emoji", "trigger=sks style", "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_a_check_finds_everything_that_is_wrong(report):
    found: dict[str, set[str]] = {}
    for one in report["findings"]:
        found.setdefault(one["kind"], set()).update(Path(name).name for name in one["files"])
    assert found.keys() == KINDS.keys() | NOTES.keys(), "every kind is found here"
    assert found["unreadable"] == set(nasty.BROKEN)
    expected = {"missing": {"none.png"}, "empty": {"empty.png"}, "encoding": {"latin.png"}, "cut": {"longest.png"}, "long": {"long.png"}}
    expected |= {"shared": {"same.png", "same.jpg"}, "orphan": {"lost.txt"}, "duplicate": {"same.png", "again.png"}, "twice": {"both.png"}}
    expected |= {"blank": {"white.png"}, "tiny": {"tiny.png"}, "cropped": {"panorama.png", "tower.png"}, "masked": {"same.png", "same.jpg"}}
    expected |= {"trigger": {"untold.png"}, "animated": {"moving.gif", "moving-too.webp"}, "enlarged": {"small.png"}}
    assert {kind: found[kind] for kind in expected} == expected
    assert found["similar"] >= {"again.png", "resized.png"} and "cmyk.jpg" not in found["similar"]


def test_a_check_counts_buckets_and_tags(report):
    assert sum(bucket["images"] for bucket in report["buckets"]) == report["images"] and not report["ok"]
    square = next(bucket for bucket in report["buckets"] if (bucket["width"], bucket["height"]) == (128, 32))
    assert square["images"] == 1 and square["worst_file"] == "panorama.png" and square["worst"] == pytest.approx(0.75)
    assert report["tags"]["a cat face"] == 2 and list(report["tags"])[0] == "sks style" and report["longest"] > 270
    assert [name for name, _, _ in report["folders"]] == ["pictures", "texts"]


def test_the_table_says_the_same_and_strict_ends_with_two(folder, run, capsys):
    words = ["dataset", "check", str(folder), "base=emoji", "--strict"]
    assert cli.main(words) == 2
    text = capsys.readouterr().out
    assert "cannot be decoded" in text and "truncated.jpg" in text and "128 × 32" in text and "sks style" in text
    clean = run("check", ROOT / "datasets" / "robot", "trigger=zorbot", "--strict")
    assert "15 pictures can be trained on" in clean and "findings" not in clean


def test_a_settings_file_serves_as_well_and_mistakes_are_said(run, tmp_path):
    assert "64 × 64" in run("check", ROOT / "configs" / "emoji-robot.toml", "resolution=[64, 96]")
    for words, message in ((["no"], "does not exist"), ([ROOT / "datasets" / "robot", "rsolution=3"], "did you mean resolution")):
        with pytest.raises(SdloraError, match=message):
            run("check", *words)
    with pytest.raises(SdloraError, match="ends in .png"):
        run("check", ROOT / "datasets" / "robot", "--sheet", tmp_path / "sheet.toml")


def test_the_sheet_shows_what_is_cut_off_dark_and_frames_what_is_seen(run, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (300, 100), "white").save(tmp_path / "in" / "a.png")
    run("check", tmp_path / "in", "base=emoji", "buckets.on=false", "--sheet", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        from sdlora.data.crops import SHADE

        row = [sheet.convert("RGB").getpixel((14 + x, sheet.height // 2 - 18)) for x in range(192)]
    dark, red = (round(255 * SHADE),) * 3, (255, 45, 45)
    assert all(abs(a - b) <= 1 for a, b in zip(row[30], dark, strict=True)) and row[96] == (255, 255, 255) and red in row[62:67]
    assert row.count((255, 255, 255)) == pytest.approx(64 - 4, abs=2)


def test_nasty_pictures_are_trained_on_and_what_cannot_be_read_is_listed(tmp_path, components, capsys):
    place = nasty.write(tmp_path / "nasty")
    settings = {"images": place, "output": tmp_path / "run", "steps": 2, "batch_size": 2, "rank": 2, "resolution": 32, "save_every": 0}
    settings |= {"precision": "fp32", "masks": "alpha", "crop": "random", "flip": True, "cache": "memory", "background": "#808080"}
    before = {path: path.read_bytes() for path in place.iterdir()}
    assert training.train(TrainConfig(**settings), components=components).exists()
    said = capsys.readouterr().err.replace("\n", "")
    assert all(f"nasty/{name} is not a readable image" in said for name in nasty.BROKEN)
    assert {path: path.read_bytes() for path in place.iterdir()} == before, "nothing of the user's is touched"
    with pytest.raises(SdloraError, match="is not a readable image"):
        training.train(TrainConfig(**settings | {"strict": True, "output": tmp_path / "other"}), progress=False, components=components)


def filled(place: Path, ages: dict[str, float]) -> Cache:
    kept = Cache(place)
    for name, days in ages.items():
        kept.get((name.rstrip("0123456789"), name), lambda: {"x": torch.zeros(1000)})
        newest = max((one for one in place.rglob("*.safetensors")), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (time.time() - days * 86400,) * 2)
    return kept


def test_the_cache_is_shown_and_pruned_by_age_and_by_size(command_line, tmp_path):
    call = command_line(cache_command, "cache")
    filled(tmp_path, {"latents1": 40, "latents2": 10, "text1": 5, "text2": 1})
    (tmp_path / "v1" / "text" / "ab").mkdir(parents=True)
    (tmp_path / "v1" / "text" / "ab" / f"{'ab' * 32}.safetensors").write_bytes(b"0" * 100)
    shown = json.loads(call("show", "--folder", tmp_path, "--json"))["kinds"]
    assert {kind: own["entries"] for kind, own in shown.items()} == {"latents": 2, "text": 2, "unused": 1}
    assert "latents" in call("show", "--folder", tmp_path)
    assert "1 entries deleted, 100 B freed" in call("prune", "--folder", tmp_path)
    assert "1 entries deleted" in call("prune", "--folder", tmp_path, "--older", "30d")
    again = Cache(tmp_path)
    again.get(("latents", "latents2"), lambda: {"x": torch.ones(1)})
    assert again.made == 0, "reading it makes it the last one used"
    assert "1 entries deleted" in call("prune", "--folder", tmp_path, "--to", "9KB")
    left = Cache(tmp_path)
    for name in ("latents2", "text2", "text1"):
        left.get((name[:-1], name), lambda: {"x": torch.ones(1)})
    assert left.made == 1, "the one that was not used for longest went first"
    assert "3 entries deleted" in call("prune", "--folder", tmp_path, "--to", "0")
    assert "0 entries" not in call("show", "--folder", tmp_path) and not list(tmp_path.rglob("*.safetensors"))


def test_a_cache_that_takes_no_files_costs_time_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("")
    kept = Cache(tmp_path / "file")
    for _ in range(2):
        assert kept.get(("text", 1), lambda: {"x": torch.ones(3)})["x"].sum() == 3
    assert kept.made == 1 and "cannot write into" in kept.problem


@pytest.mark.parametrize(
    "words", [("--older", "30"), ("--older", "soon"), ("--to", "5"), ("--to", "2 GBs"), ("--to", "2ib"), ("--folder", "no")]
)
def test_what_is_no_age_or_size_is_said(command_line, words):
    with pytest.raises(SdloraError, match="such as 30d|such as 2GB|there is no folder"):
        command_line(cache_command, "cache")("prune", *words)


def test_sizes_and_ages_are_read_and_written():
    assert sizes.size("2GB") == 2 * 10**9 and sizes.size("1.5 MiB") == 1572864 and sizes.size("0") == 0
    assert cache_command.seconds("30d") == 30 * 86400 and cache_command.seconds("12h") == 43200
    assert sizes.readable(1_234_567) == "1.2 MB" and sizes.readable(12) == "12 B"


def test_tag_frequencies_count_pictures(folder):
    examples = [data.Example(Path("a"), ("x, y, x", "y")), data.Example(Path("b"), ("y",))]
    assert check.tag_frequencies(examples) == [("y", 2), ("x", 1)]


def test_the_settings_that_the_guide_shows_are_valid(tmp_path):
    import re

    from sdlora import config

    guide = (ROOT / "datasets" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "a.toml").write_text(block, encoding="utf-8")
    found = config.load(TrainConfig, tmp_path / "a.toml", ["output=x"])
    assert found.folders[0].trigger == "zwx" and found.regularisation == tmp_path / "cats"
    named = re.findall(r"`(\w+(?:\.\w+)?) = ", guide)
    assert len(named) > 5
    for name in named:
        first, _, rest = name.partition(".")
        assert first in TrainConfig.model_fields and (not rest or rest in data.settings.Buckets.model_fields), name
