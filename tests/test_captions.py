"""Captions: worded anew each time, by chance that can be repeated; and found in whatever file people keep them in."""

import json
from collections import Counter
from random import Random

import pytest

from sdlora import captions
from sdlora.captions import Wording, contains, with_trigger, worded, wordings
from sdlora.data import metadata
from sdlora.errors import SdloraError

TAGS = "sks, a cat, sitting, red hat, outdoors"


def chances(number: int) -> Random:
    return Random(number + 1)


def test_what_asks_for_nothing_changes_nothing():
    for text in (TAGS, "a cat,dog ,  bird", "no commas at all", "(emphasis:1.2), brackets"):
        assert wordings((text,), Wording(separator="|||"), chances) == (text,)


def test_shuffled_tags_are_the_same_tags_in_every_order_and_the_kept_ones_stay():
    found = wordings((TAGS,), Wording(shuffle=True, keep=2, variants=400), chances)
    assert len(found) == 400 and len(set(found)) == 6, "all orders of the three loose tags"
    assert all(text.startswith("sks, a cat, ") and sorted(captions.tags(text)) == sorted(captions.tags(TAGS)) for text in found)
    assert max(Counter(found).values()) < 110, "each about as often"
    assert found == wordings((TAGS,), Wording(shuffle=True, keep=2, variants=400), chances)


def test_dropped_tags_have_their_share_and_the_kept_ones_stay():
    found = wordings((TAGS,), Wording(dropout=0.3, keep=1, variants=1000), chances)
    kept = Counter(tag for text in found for tag in captions.tags(text))
    assert kept["sks"] == 1000 and all(abs(kept[tag] - 700) < 60 for tag in ("a cat", "sitting", "red hat", "outdoors"))
    assert all(captions.tags(text) == [tag for tag in captions.tags(TAGS) if tag in captions.tags(text)] for text in found[:50]), "in order"


def test_the_separator_marks_what_stays_and_is_never_seen():
    text = "sks style, a cat ||| b, c, d ||| the end"
    how = Wording(shuffle=True, dropout=0.5, separator="|||", variants=200)
    found = wordings((text,), how, chances)
    assert all(f.startswith("sks style, a cat") and f.endswith("the end") and "|" not in f for f in found)
    assert wordings((text,), Wording(separator="|||"), chances) == ("sks style, a cat, b, c, d, the end",)
    assert worded(text, Wording(), Random(0)) == text, "with no separator it is text"


def test_several_captions_take_turns_equally_often():
    three = ("one", "two, a, b", "three")
    assert sorted(wordings(three, Wording(), chances)) == sorted(three)
    shuffled = wordings(three, Wording(shuffle=True, variants=16), chances)
    assert [sum(word in captions.tags(text) for text in shuffled) for word in ("one", "two", "three")] == [5, 5, 5]


def test_a_trigger_is_put_in_front_only_where_it_is_missing():
    assert with_trigger("a cat", ["sks style", "zwx"]) == "sks style, a cat"
    assert with_trigger("a ZWX cat", ["sks style", "zwx"]) == "a ZWX cat" and with_trigger("a cat", []) == "a cat"


def test_a_trigger_is_found_as_words():
    assert contains("a fox, SKS style", "sks style") and contains("zorbot", "zorbot")
    assert not contains("a foxsks", "sks") and not contains("sks, style of", "sks of")


def test_a_caption_file_is_one_caption_or_one_a_line(tmp_path):
    image = tmp_path / "a.png"
    image.with_suffix(".caption").write_text("\ufeffone,\n two \n\n", encoding="utf-8")
    assert captions.read(image) == ("one, two",) and captions.read(image, lines=True) == ("one,", "two")
    image.with_suffix(".txt").write_text("the text")
    assert captions.read(image) == ("the text",) and captions.read(tmp_path / "b.png") == ()


def test_captions_are_found_in_the_files_of_hugging_face_and_of_kohya(tmp_path):
    (tmp_path / "in").mkdir()
    rows = [{"file_name": "a.png", "text": "an a"}, {"file_name": "in/b.jpg", "captions": ["b one", " b  two"]}]
    rows += [{"image_path": str(tmp_path / "c.png"), "caption": "a c", "tags": "x, y"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    table = metadata.find(tmp_path)
    assert table.of(tmp_path / "a.png") == ("an a",) and table.of(tmp_path / "in" / "b.jpg") == ("b one", "b two")
    assert table.of(tmp_path / "c.png") == ("a c, x, y",) and table.of(tmp_path / "in" / "a.png") == ()
    assert table.missing([".png", ".jpg"]) == ["a.png", "in/b.jpg", str(tmp_path / "c.png")]
    kohya = {"a": {"caption": "an a", "tags": "x"}, str(tmp_path / "b"): {"tags": "only, tags", "train_resolution": [512, 512]}}
    (tmp_path / "meta.json").write_text(json.dumps(kohya))
    table = metadata.read(tmp_path / "meta.json")
    assert table.of(tmp_path / "a.png") == ("an a, x",) and table.of(tmp_path / "b.webp") == ("only, tags",)


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"file_name": "a.png"', "line 1 of .* is not valid JSON"),
        ('{"text": "x"}', "line 1 of .* names no image"),
        ('{"file_name": "a.png"}', "no image has a caption in"),
    ],
)
def test_a_damaged_metadata_file_is_said(tmp_path, text, words):
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(SdloraError, match=words):
        metadata.find(tmp_path)
