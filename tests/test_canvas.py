"""Init pictures and masks before and after drawing: how they are read, fitted, blurred, cut out and pasted back."""

from pathlib import Path

import numpy as np
import pytest
from folders import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from sdlora.errors import SdloraError
from sdlora.generation import canvas, sources


def rectangle(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


@pytest.mark.parametrize("how", canvas.RESIZES)
def test_a_picture_of_the_right_size_is_left_alone_bit_for_bit(how: str):
    image = noise(24, 16, 0)
    assert canvas.fitted(image, (24, 16), how) is image


def test_crop_keeps_the_middle_fit_keeps_all_and_stretch_distorts():
    """A white square in the middle of a black picture twice as wide as high, brought into a square."""
    image = Image.new("RGB", (128, 64))
    image.paste("white", (48, 16, 80, 48))
    extents = {how: canvas.fitted(image, (64, 64), how).convert("L").point(lambda v: 255 * (v > 127)).getbbox() for how in canvas.RESIZES}
    assert extents == {"crop": (16, 16, 48, 48), "fit": (24, 24, 40, 40), "stretch": (24, 16, 40, 48)}


def test_fit_repeats_the_edges_where_the_picture_does_not_reach():
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (0, 16, 64, 32))
    found = np.asarray(canvas.fitted(image, (64, 64), "fit"))
    assert (found[:16] == (255, 0, 0)).all() and (found[48:] == (0, 0, 255)).all()


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (31, 17)])
def test_what_was_fitted_comes_back_at_its_own_size(size: tuple[int, int]):
    wave = np.add.outer(np.arange(size[1]), np.arange(size[0])) * 4
    image = Image.fromarray(wave.astype(np.uint8))
    back = canvas.unfitted(canvas.fitted(image, (96, 96), "fit"), size)
    assert back.size == size and abs(np.asarray(back).astype(int) - wave)[2:-2, 2:-2].max() <= 3


def test_the_blur_is_a_gaussian_cut_off_at_two_and_a_half_sigma():
    found = np.asarray(canvas.blurred(rectangle((41, 41), (20, 0, 41, 41)), 4.0))[20].astype(float)
    taps = [np.exp(-(i**2) / 32) for i in range(-10, 11)]
    expected = [255 * sum(t for i, t in zip(range(-10, 11), taps, strict=True) if x + i >= 20) / sum(taps) for x in range(10, 31)]
    assert abs(found[10:31] - expected).max() <= 1
    assert (found[:10] == 0).all() and (found[30:] == 255).all()


@pytest.mark.parametrize(("level", "sigma"), [(0, 4.0), (255, 4.0), (255, 30.0), (77, 0.0)])
def test_an_even_mask_stays_as_it_is_whatever_the_blur(level: int, sigma: float):
    assert canvas.blurred(Image.new("L", (9, 5), level), sigma).getextrema() == (level, level)


def test_the_weight_is_full_from_the_middle_of_the_blurred_edge_on():
    assert [canvas.doubled(Image.new("L", (1, 1), level)).getpixel((0, 0)) for level in (0, 1, 64, 127, 128, 255)] == [
        *(0, 2, 128, 254, 255, 255)
    ]


def test_a_latent_is_redrawn_or_is_not_but_for_a_soft_mask():
    assert (
        canvas.latent_mask(Image.new("L", (64, 32), 255), (16, 8)).all() and not canvas.latent_mask(Image.new("L", (64, 32)), (16, 8)).any()
    )
    half = canvas.latent_mask(rectangle((64, 32), (32, 0, 64, 32)), (16, 8))
    for level, hard in ((0, 0), (100, 0), (150, 1), (255, 1)):
        grey = Image.new("L", (64, 32), level)
        assert (canvas.latent_mask(grey, (16, 8)) == hard).all() and (
            canvas.latent_mask(grey, (16, 8), soft=True) == np.float32(level / 255)
        ).all()
    assert half.shape == (1, 1, 8, 16) and (half[..., 8:] == 1).all() and not half[..., :8].any()


SIDES = st.integers(1, 60)


@settings(max_examples=60)
@given(SIDES, SIDES, st.data())
def test_the_region_holds_the_mask_and_its_padding_has_the_shape_and_stays_inside(width: int, height: int, data):
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    padding, shape = data.draw(st.integers(0, 20)), (data.draw(SIDES), data.draw(SIDES))
    box = canvas.region(rectangle((width, height), (left, top, right, bottom)), padding, shape)
    assert box is not None
    assert 0 <= box[0] <= max(left - padding, 0) and min(right + padding, width) <= box[2] <= width
    assert 0 <= box[1] <= max(top - padding, 0) and min(bottom + padding, height) <= box[3] <= height
    wide, high = box[2] - box[0], box[3] - box[1]
    if wide < width and high < height:  # no border in the way: in proportion, but for the rounding up of one side
        assert (wide - 1) * shape[1] < high * shape[0] < (wide + 1) * shape[1] or (high - 1) * shape[0] < wide * shape[1] < (
            high + 1
        ) * shape[0]


def test_a_mask_with_nothing_white_has_no_region():
    assert canvas.region(Image.new("L", (8, 8)), 4, (8, 8)) is None


@pytest.mark.parametrize("box", [None, (4, 8, 20, 24)])
def test_pasting_leaves_every_pixel_of_weight_zero_as_it_was(box: tuple[int, int, int, int] | None):
    onto, drawn = noise(32, 32, 0), noise(32, 32, 1)
    weight = rectangle((32, 32), (6, 10, 18, 22))
    found, white = np.asarray(canvas.Paste(onto, weight, box)(drawn)), np.asarray(weight) == 255
    assert (found[~white] == np.asarray(onto)[~white]).all()
    if box is None:
        assert (found[white] == np.asarray(drawn)[white]).all()
    else:
        inside = np.asarray(drawn.resize((16, 16), Image.Resampling.LANCZOS))
        assert (found[10:22, 6:18] == inside[2:14, 2:14]).all()


def test_a_picture_is_turned_as_its_exif_data_says(tmp_path: Path):
    image = Image.new("RGB", (20, 10), "red")
    ImageDraw.Draw(image).rectangle((0, 0, 9, 9), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    found = sources.picture(tmp_path / "turned.png")
    assert found.size == (10, 20) and sources.extent(tmp_path / "turned.png") == (20, 10)
    assert found.getpixel((5, 5)) == (0, 0, 255) and found.getpixel((5, 15)) == (255, 0, 0)


def test_what_is_transparent_shows_the_background_and_can_be_the_mask(tmp_path: Path):
    image = Image.new("RGBA", (8, 4), (255, 0, 0, 255))
    image.paste((0, 255, 0, 0), (0, 0, 4, 4))
    image.save(tmp_path / "a.png")
    found = sources.picture(tmp_path / "a.png", "#0000ff")
    assert found.getpixel((1, 1)) == (0, 0, 255) and found.getpixel((6, 1)) == (255, 0, 0)
    mask = sources.mask("alpha", tmp_path / "a.png")
    assert mask.getpixel((1, 1)) == 255 and mask.getpixel((6, 1)) == 0


def test_a_picture_in_memory_is_as_good_as_a_file_and_stays_as_it_is():
    image = noise(8, 4, 0)
    before = image.tobytes()
    assert sources.picture(image).tobytes() == before and sources.extent(image) == (4, 8)
    assert image.tobytes() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: sources.picture(folder / "none.png"), "there is no picture .*none.png"),
        (lambda folder: sources.extent(folder / "text.png"), "text.png is not a readable picture"),
        (lambda folder: sources.mask(noise(4, 4, 0), noise(8, 4, 0)), "the mask .* has 4 × 4 pixels and .* 8 × 4"),
        (lambda folder: sources.mask("alpha", noise(8, 4, 0)), "no transparency"),
        (lambda folder: sources.check_colour("whit"), "background is 'whit'.*did you mean white"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, call, message: str):
    (tmp_path / "text.png").write_text("no picture at all")
    with pytest.raises(SdloraError, match=message) as error:
        call(tmp_path)
    assert "\n" not in str(error.value)


def test_a_filled_part_has_the_colours_around_it_and_nothing_of_its_own():
    """The rest stays bit for bit; left and right of the hole it is red and blue; and what was in it does not matter."""
    image = Image.new("RGB", (96, 64), "red")
    image.paste("blue", (48, 0, 96, 64))
    hole = rectangle((96, 64), (28, 16, 68, 48))
    other = Image.composite(noise(96, 64, 0), image, hole)
    found = np.asarray(canvas.filled(image, hole)).astype(int)
    assert (found == np.asarray(canvas.filled(other, hole))).all()
    outside = np.asarray(hole) == 0
    assert (found[outside] == np.asarray(image)[outside]).all()
    left, right = found[32, 30], found[32, 65]
    assert left[0] > left[2] + 100 and right[2] > right[0] + 100 and found[..., 1].max() <= 2


@pytest.mark.parametrize("blur", [0.0, 4.0])
def test_a_part_of_an_even_picture_is_filled_with_its_colour(blur: float):
    image, mask = Image.new("RGB", (64, 64), (40, 120, 200)), canvas.blurred(rectangle((64, 64), (10, 20, 40, 50)), blur)
    assert abs(np.asarray(canvas.filled(image, mask)).astype(int) - (40, 120, 200)).max() <= 8  # eight bits, weighted
