"""One picture file as the VAE sees it: every mode and format, colours by their profile, turned, on a background, masked."""

import struct

import numpy as np
import pytest
import torch
from nasty import scene
from PIL import Image, features

from sdlora.data import pictures, similar
from sdlora.data.pictures import read


def test_transparency_becomes_the_background_and_not_the_hidden_colour(tmp_path):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 255, 128))
    image.save(tmp_path / "a.png")
    assert list(read(tmp_path / "a.png").getdata()) == [(255, 255, 255), (127, 127, 255)]
    assert read(tmp_path / "a.png", "#102030").getpixel((0, 0)) == (16, 32, 48)
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([255, 0, 0])
    palette.save(tmp_path / "p.png", transparency=0)
    assert read(tmp_path / "p.png").getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_honoured(tmp_path):
    image = Image.new("RGB", (4, 2), "white")
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path / "a.jpg").size == (2, 4) and pictures.extent(tmp_path / "a.jpg") == (4, 2)
    exif[0x0112] = 9  # stands for nothing
    image.save(tmp_path / "b.jpg", exif=exif)
    assert read(tmp_path / "b.jpg").size == (4, 2) and pictures.extent(tmp_path / "b.jpg") == (2, 4)


@pytest.mark.parametrize("value, array", [(32896, np.uint16), (128.2 / 255, np.float32), (128.0, np.float32)])
def test_more_than_eight_bits_are_scaled_and_not_cut(tmp_path, value, array):
    Image.fromarray(np.full((2, 2), value, array)).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif").getpixel((0, 0)) == (128, 128, 128)


def test_cmyk_grey_and_black_and_white_become_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "c.tif")
    assert read(tmp_path / "c.tif").getpixel((0, 0)) == (0, 255, 255)
    for mode, value in (("L", 77), ("1", 1)):
        Image.new(mode, (8, 8), value).save(tmp_path / "g.png")
        assert read(tmp_path / "g.png").getpixel((0, 0)) == ((77,) * 3 if mode == "L" else (255,) * 3)


def test_of_an_animation_the_first_picture_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.gif", "a.webp", "a.png"):
        extra = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **extra)
        assert read(tmp_path / name).getpixel((4, 4)) == (255, 0, 0)


def test_avif_is_read(tmp_path):
    assert features.check("avif")
    scene(1).save(tmp_path / "a.avif", quality=95)
    assert np.abs(np.asarray(read(tmp_path / "a.avif"), float) - np.asarray(scene(1), float)).mean() < 6


def profile(red: tuple, green: tuple, blue: tuple, gamma: float = 2.2) -> bytes:
    """An ICC profile (version 2, matrix and curves) by its primaries."""

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    name = b"swapped\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78 + 8)
    tags = {b"desc": described, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz((0.9642, 1, 0.8249))}
    tags |= {b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for key, value in tags.items():
        value += bytes(-len(value) % 4)
        table += key + struct.pack(">II", offset + len(body), len(value))
        body += value
    size = offset + len(body)
    head = struct.pack(">I4sI", size, b"none", 0x02100000) + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">iii", *(round(v * 65536) for v in (0.9642, 1, 0.8249)))
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body


RED, GREEN, BLUE = (0.4360747, 0.2225045, 0.0139322), (0.3850649, 0.7168786, 0.0971045), (0.1430804, 0.0606169, 0.7141733)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_what_the_pictures_own_profile_says(tmp_path, mode):
    image = Image.new("RGB", (4, 4), (230, 40, 40))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    swapped = profile(BLUE, GREEN, RED)  # its "red" is sRGB's blue
    image.save(tmp_path / "a.png", icc_profile=swapped)
    assert np.abs(np.subtract(read(tmp_path / "a.png").getpixel((0, 0)), (40, 40, 230))).max() <= 6
    image.save(tmp_path / "b.png", icc_profile=profile(RED, GREEN, BLUE))
    assert np.abs(np.subtract(read(tmp_path / "b.png").getpixel((0, 0)), (230, 40, 40))).max() <= 6


def test_a_profile_that_cannot_serve_changes_nothing(tmp_path):
    for data in (b"no profile at all", profile(RED, GREEN, BLUE)[:200]):
        Image.new("RGB", (4, 4), (230, 40, 41)).save(tmp_path / "a.png", icc_profile=data)
        assert read(tmp_path / "a.png").getpixel((0, 0)) == (230, 40, 41)


def test_a_mask_is_the_opacity_or_the_brightness_of_a_file_at_the_latents_size(tmp_path):
    rng = np.random.default_rng(0)
    alpha = rng.integers(0, 256, (32, 48), np.uint8)
    image = scene(1, 48, 32).convert("RGBA")
    image.putalpha(Image.fromarray(alpha))
    expected = torch.from_numpy(alpha.reshape(8, 4, 12, 4).mean((1, 3), dtype=np.float64) / 255).float()[None]
    own = pictures.mask(tmp_path, image, own=True)
    torch.testing.assert_close(pictures.shrunk(own, (0, 0, 48, 32), (8, 12)), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(pictures.shrunk(own, (16, 8, 32, 24), (4, 4)), expected[:, 2:6, 4:8], rtol=0, atol=1e-5)
    Image.fromarray(alpha).save(tmp_path / "m.png")
    file = pictures.mask(tmp_path / "m.png", image, own=False)
    torch.testing.assert_close(pictures.shrunk(file, (0, 0, 48, 32), (8, 12)), expected, rtol=0, atol=1e-5)
    assert pictures.mask(tmp_path, scene(1), own=True) is None, "nothing is transparent"


def test_copies_are_recognised_and_other_pictures_are_not(tmp_path):
    one = scene(1, 300, 200)
    one.save(tmp_path / "a.jpg", quality=50)
    small, dark = one.resize((150, 100)), one.point(lambda v: v * 0.9)
    flats = [Image.new("RGB", (64, 64), colour) for colour in ("red", "red", "blue")]
    shown = [one, Image.open(tmp_path / "a.jpg"), small, dark, scene(2, 300, 200), *flats, one.transpose(Image.Transpose.ROTATE_90)]
    pairs = similar.near([similar.print_of(picture.convert("RGB")) for picture in shown])
    assert similar.groups(pairs) == [[0, 1, 2, 3], [5, 6]]
