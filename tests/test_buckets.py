"""Buckets: kohya's sizes, the least loss, nothing enlarged on request; and which pictures make a batch."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdlora.data.buckets import Crop, Frames, Grid, framed, frames, resolutions
from sdlora.data.settings import DataSettings
from sdlora.errors import SdloraError
from sdlora.training.deal import Deck, dealt

sides = st.integers(8, 4000)
SD = Frames((512,), on=True)


def test_the_sizes_of_512_are_kohyas():
    """Of sd-scripts' make_bucket_resolutions((512, 512)), by hand from its rule: height = ⌊512² / width / 64⌋ · 64."""
    halves = {(256, 1024), (320, 768), (384, 640), (448, 576), (512, 512)}
    more = {(w, h) for w, h in ((576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256))}
    expected = halves | more
    assert set(resolutions(512, 64, 256, 1024)) == expected | {(b, a) for a, b in expected}


@pytest.mark.parametrize("side, step", [(64, 16), (512, 64), (768, 64), (1024, 64), (1024, 32), (832, 64)])
def test_every_size_is_of_the_steps_and_no_larger_than_the_square(side, step):
    how = Frames((side,), on=True, step=step)
    sizes = how.sizes(side)
    low, high = how.bounds(side)
    assert len(sizes) > 3 and (side // step * step,) * 2 in sizes
    for height, width in sizes:
        assert height % step == width % step == 0 and height * width <= side * side and (width, height) in sizes
        assert low <= min(height, width) and max(height, width) <= high


@given(sides, sides)
@settings(max_examples=150)
def test_a_picture_gets_the_size_in_which_most_of_it_is_seen_and_its_turned_copy_the_turned_one(height, width):
    crop = framed((height, width), SD, 512)
    losses = {size: Crop((height, width), size, 0, 0).lost for size in SD.sizes(512)}
    assert crop.lost <= min(losses.values()) + 1e-6
    turned = framed((width, height), SD, 512)
    assert turned.size == crop.size[::-1]


@given(sides, sides, st.booleans(), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=150)
def test_a_crop_lies_inside_its_picture_keeps_the_aspect_and_adds_up(height, width, upscale, down, across):
    how = Frames((512,), on=True, upscale=upscale)
    if not upscale and min(height, width) < 200:
        return
    crop = framed((height, width), how, 512, (down, across))
    left, upper, right, lower = crop.box
    assert -1e-6 <= left < right <= width + 1e-6 and -1e-6 <= upper < lower <= height + 1e-6
    assert (right - left) / (lower - upper) == pytest.approx(crop.size[1] / crop.size[0], rel=1e-6)
    assert 1 - (right - left) * (lower - upper) / (height * width) == pytest.approx(crop.lost, abs=1e-6)
    assert upscale or crop.scale <= 1 + 1e-9
    told, mirrored = crop.sizes(), crop.sizes(mirrored=True)
    total = width * crop.scale - crop.size[1]
    assert told.crop[0] == mirrored.crop[0] and abs(told.crop[1] + mirrored.crop[1] - total) <= 2


def test_without_upscaling_a_small_picture_gets_a_small_size():
    how = Frames((512,), on=True, upscale=False)
    assert framed((200, 300), how, 512).size == (192, 256) and framed((200, 300), SD, 512).size == (384, 640)
    assert framed((2000, 3000), how, 512).size == framed((2000, 3000), SD, 512).size
    assert framed((100, 3000), how, 512).scale <= 1
    with pytest.raises(SdloraError, match="300 × 40 pixels is smaller than 64"):
        framed((40, 300), how, 512)


def test_off_they_are_the_middle_squares():
    assert framed((300, 100), Frames((64,)), 64).box == pytest.approx((0, 100, 100, 200))


BASE = Grid("sd", 512, 64, 8)


def test_what_is_left_to_the_base_is_filled_in_and_what_it_cannot_serve_is_refused(tmp_path):
    def of(**changes):
        return frames(DataSettings(images=tmp_path, **changes), BASE)

    assert of() == Frames((512,), True, 64)
    assert frames(DataSettings(images=tmp_path), Grid("xl", 1024, 32, 8)).step == 64
    assert frames(DataSettings(images=tmp_path), Grid("emoji", 64, 16, 4)).step == 16
    assert of(resolution=(512, 768)).sides == (512, 768)
    with pytest.raises(SdloraError, match="resolution 512 does not lie between"):
        of(buckets={"largest": 256})
    for changes, words in (({"resolution": 500}, "resolution is 500"), ({"buckets": {"step": 32}}, "buckets.step is 32")):
        with pytest.raises(SdloraError, match=f"{words}; sd needs a multiple of 64, such as"):
            of(**changes)


def cards(deck: Deck, count: int, size: int, seed: int = 0):
    return [dealt(deck, k, size, seed, "order") for k in range(count)]


decks = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=9)


@given(decks, st.integers(1, 7))
@settings(max_examples=60)
def test_every_batch_is_of_one_size_and_everything_comes_as_often_as_its_repeats_say(rows, size):
    deck = Deck([shape for shape, _ in rows], [repeats for _, repeats in rows])
    batches = cards(deck, 3 * len(deck.cards), size)
    counts = Counter(card.row for batch in batches for card in batch)
    for batch in batches:
        assert len(batch) == size and len({rows[card.row][0] for card in batch}) == 1
    epoch = deck.epoch(len(batches), size)
    assert 3 * size - 1 <= epoch <= 3 * size + len(deck.heights) * size
    for shape in {shape for shape, _ in rows}:
        late = [epoch * repeats - counts[row] for row, (own, repeats) in enumerate(rows) if own == shape]
        assert sum(n for n in late if n > 0) < size, "what waits on a pile is less than a batch"
    assert all(counts[row] <= (epoch + 1) * repeats for row, (_, repeats) in enumerate(rows)), "and nothing comes before its time"


def test_the_showings_of_a_picture_count_up_without_a_gap_whatever_the_size_of_the_batches():
    deck = Deck(["a", "b", "a", "b", "b"], [1, 2, 1, 1, 3])
    for size in (1, 3, 4):
        seen: dict[int, list[int]] = {}
        for batch in cards(deck, 60, size):
            for card in batch:
                seen.setdefault(card.row, []).append(card.showing)
        for row, showings in seen.items():
            longest = max(showings) + 1
            missing = set(range(longest)) - set(showings)
            assert len(set(showings)) == len(showings) and len(missing) <= deck.repeats[row], "but for those that wait"


def test_an_epoch_of_one_size_is_its_permutation_cut_into_batches():
    from sdlora.training import draws

    deck = Deck(["a"] * 5, [1] * 5)
    flat = [card.row for batch in cards(deck, 10, 3) for card in batch]
    assert flat == [row for epoch in range(6) for row in draws.order(5, 0, "order", epoch).tolist()]


def test_a_batch_far_away_is_found_without_walking_there():
    deck = Deck(list(np.arange(40) % 7), [1] * 40)
    far = dealt(deck, 1_000_000, 8, 3, "order")
    assert far == dealt(deck, 1_000_000, 8, 3, "order") and far != dealt(deck, 1_000_000, 8, 4, "order")
    assert all(math.isclose(card.showing, 1_000_000 * 8 / 40, abs_tol=8) for card in far)


def test_no_batch_asks_for_more_showings_than_are_prepared():
    deck = Deck(["a", "a", "b"], [1, 4, 2])
    for count in (1, 2, 9):
        limit = [deck.showings(row, count, 3) for row in range(3)]
        assert all(card.showing < limit[card.row] for batch in cards(deck, count, 3) for card in batch)
