"""The demo: its scenes, its samples, and all of it in fast mode on a tiny random base."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sdlora import cli, config
from sdlora.demo import samples
from sdlora.demo.run import Demo, requests, trigger
from sdlora.demo.scenes import COLUMNS, ROWS, Column, Row, Triggers
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig

ROOT = Path(__file__).parents[1]
TRIGGERS = Triggers("sks style", "zorbot robot")


def test_trigger_words_stand_where_their_adapter_is_active_and_nowhere_else():
    for column in COLUMNS:
        for row in ROWS:
            prompt = column.prompt(row, TRIGGERS)
            assert (TRIGGERS.style in prompt) == bool(column.style) and (TRIGGERS.character in prompt) == bool(column.character)
            assert (row.thing in prompt) == (not column.character) and (row.style in prompt) == (not column.style)


def test_a_prompt_keeps_what_surrounds_the_thing():
    row = Row("penguin", "flat emoji", "a {} with a crown")
    assert Column("both", 1.0, 1.0).prompt(row, TRIGGERS) == "a zorbot robot with a crown, sks style"
    assert Column("base").prompt(row, TRIGGERS) == "a penguin with a crown, flat emoji"


def test_the_columns_are_those_that_were_promised():
    assert [(c.style, c.character) for c in COLUMNS] == [(0, 0), (0.5, 0), (1, 0), (0, 1), (0.7, 1)]


def test_a_row_has_one_seed_so_that_only_the_adapters_differ():
    seeds = [[r.seed for r in requests(column, TRIGGERS, Demo(Path("x")))] for column in COLUMNS]
    assert all(s == seeds[0] for s in seeds) and len(set(seeds[0])) == len(ROWS)


def test_the_things_of_the_sheet_are_not_in_the_style_folder():
    captions = [path.read_text() for path in (ROOT / "datasets" / "high-contrast").glob("*.txt")]
    assert captions and not [row.thing for row in ROWS if any(f" {row.thing}," in caption for caption in captions)]


def test_the_samples_of_the_checkout_train_a_style_and_a_character_with_prior_preservation():
    found = samples.find()
    style, character = (config.load(TrainConfig, path) for path in (found.style, found.character))
    assert style.images.is_dir() and character.images.is_dir() and character.prior.on
    for settings, words in ((style, trigger(style)), (character, f"{trigger(character)} {samples.NOUN}")):
        assert all(words in path.read_text() for path in settings.images.glob("*.txt")), words


def test_without_samples_the_demo_says_where_it_looked(tmp_path):
    with pytest.raises(SdloraError, match=f"are not in {tmp_path}.*--samples"):
        samples.find(tmp_path)


@pytest.mark.slow
def test_the_fast_demo_makes_everything_and_uses_it_again(tiny_base, tmp_path, capsys):
    call = ["demo", "--fast", "--base", str(tiny_base), "--output", str(tmp_path)]
    assert cli.main(call) == 0
    out = capsys.readouterr().out
    made = [
        tmp_path / name for name in ("demo.png", "style/adapter.safetensors", "character/adapter.safetensors", "benchmark/benchmark.md")
    ]
    assert all(path.is_file() for path in made) and all(path.name in out for path in made)
    assert len(list((tmp_path / "character" / "prior").rglob("*.png"))) == 2
    with Image.open(made[0]) as sheet:
        assert sheet.width > len(COLUMNS) * 192
    assert json.loads((tmp_path / "benchmark" / "benchmark.json").read_text())["complete"]
    times = [path.stat().st_mtime_ns for path in made[1:3]]
    assert cli.main(call) == 0
    assert [path.stat().st_mtime_ns for path in made[1:3]] == times
