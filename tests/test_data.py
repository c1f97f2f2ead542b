"""Image folders: what is read, how a picture is prepared, and that nothing is encoded twice or stale."""

import numpy as np
import pytest
import torch
from PIL import Image

from sdlora import conditioning, data, latents
from sdlora.captions import contains
from sdlora.data import Cache, encode, pictures
from sdlora.data.encode import embeddings
from sdlora.errors import SdloraError


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (80, 64, 3), np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"picture {i},\n flat emoji\n")
    return tmp_path


def test_a_scan_gives_images_and_captions_in_the_order_of_their_names(folder):
    (folder / "LICENSE").write_text("none")
    (folder / ".hidden.png").write_text("none")
    assert [(e.path.name, e.caption) for e in data.scan(folder)] == [(f"{i}.png", f"picture {i}, flat emoji") for i in range(3)]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: [p.unlink() for p in f.iterdir()], ["no images in"]),
        (lambda f: (f / "1.txt").unlink(), ["1.png has no caption", "1.txt", "caption ="]),
        (lambda f: (f / "1.txt").write_text(" \n"), ["1.txt is empty"]),
        (lambda f: (f / "1.txt").write_bytes(b"\xff\xfe\xfa"), ["1.txt is not UTF-8"]),
        (lambda f: Image.new("RGB", (4, 4)).save(f / "1.jpg"), ["1.jpg and 1.png", "share a stem"]),
    ],
)
def test_a_bad_folder_is_refused_with_the_file_and_the_way_out(folder, damage, words):
    damage(folder)
    with pytest.raises(SdloraError) as caught:
        data.scan(folder)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_missing_folder_and_a_folder_of_folders_are_refused(folder, tmp_path_factory):
    with pytest.raises(SdloraError, match="does not exist"):
        data.scan(folder / "no")
    above = tmp_path_factory.mktemp("above")
    folder.rename(above / "10_cat")
    with pytest.raises(SdloraError, match="in its subfolder 10_cat"):
        data.scan(above)


def test_a_caption_for_all_serves_images_without_one(folder):
    (folder / "1.txt").unlink()
    assert [e.caption for e in data.scan(folder, "a robot")] == ["picture 0, flat emoji", "a robot", "picture 2, flat emoji"]


DAMAGE = (lambda b: b[: len(b) // 2], lambda b: b"no picture", lambda b: b[:200] + b"xx" + b[202:], lambda b: b"")


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_corrupt_image_is_named(folder, damage):
    path = folder / "1.png"
    path.write_bytes(damage(path.read_bytes()))
    for look in (pictures.check, pictures.read):
        with pytest.raises(SdloraError, match="1.png is not a readable image .*; replace it"):
            look(path)


def test_transparency_becomes_white_and_not_the_hidden_colour(tmp_path):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 255, 128))
    image.save(tmp_path / "a.png")
    assert list(pictures.read(tmp_path / "a.png").getdata()) == [(255, 255, 255), (127, 127, 255)]
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([255, 0, 0])
    palette.save(tmp_path / "p.png", transparency=0)
    assert pictures.read(tmp_path / "p.png").getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_honoured(tmp_path):
    image = Image.new("RGB", (4, 2), "white")
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "a.jpg", exif=exif)
    assert pictures.read(tmp_path / "a.jpg").size == (2, 4)


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path):
    Image.fromarray(np.full((2, 2), 32896, np.uint16)).save(tmp_path / "a.png")
    assert pictures.read(tmp_path / "a.png").getpixel((0, 0)) == (128, 128, 128)


def test_a_picture_is_cropped_in_the_middle():
    image = Image.new("RGB", (30, 10), "red")
    image.paste("lime", (10, 0, 20, 10))
    x = pictures.to_tensor(pictures.square(image, 10))
    assert x.shape == (3, 10, 10) and x.dtype == torch.float32
    assert torch.equal(x[:, 5, 5], torch.tensor([-1.0, 1.0, -1.0]))
    assert (x[1] > 0.9).float().mean() > 0.95


def test_a_trigger_is_found_as_words():
    assert contains("a fox, SKS style", "sks style") and contains("zorbot", "zorbot")
    assert not contains("a foxsks", "sks") and not contains("sks, style of", "sks of")


def test_nothing_is_encoded_twice(folder, components, tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache")
    first = Cache(place)
    found = data.scan(folder)
    one = encode(found, components, 64, first, flip=True)
    texts = embeddings([e.caption for e in found], components, first)
    assert first.made == 3 * 2 + 3 and one.latents.shape == (3, 2, 4, 16, 16)

    def fail(*args):
        raise AssertionError("encoded again")

    monkeypatch.setattr(latents, "encode_image", fail)
    monkeypatch.setattr(conditioning, "encode_text", fail)
    second = Cache(place)
    assert torch.equal(encode(data.scan(folder), components, 64, second, flip=True).latents, one.latents)
    assert torch.equal(embeddings([e.caption for e in found], components, second).context, texts.context)
    assert second.made == 0


def test_what_changed_is_encoded_anew_and_only_that(folder, components, tmp_path_factory):
    place = tmp_path_factory.mktemp("cache")

    def made(size: int = 64) -> int:
        cache = Cache(place)
        found = data.scan(folder)
        encode(found, components, size, cache)
        embeddings([e.caption for e in found], components, cache)
        return cache.made

    assert made() == 6 and made() == 0
    Image.new("RGB", (64, 64), "red").save(folder / "1.png")
    assert made() == 1
    (folder / "2.txt").write_text("another")
    assert made() == 1
    (folder / "0.png").rename(folder / "9.png")
    (folder / "0.txt").rename(folder / "9.txt")
    assert made() == 0
    assert made(32) == 3
    for damaged in place.glob("*.safetensors"):
        damaged.write_bytes(b"x")
    assert made() == 6 and made(32) == 3


def test_the_mirrored_view_is_the_latent_of_the_mirrored_picture(folder, components):
    from PIL import ImageOps

    whole = encode(data.scan(folder), components, 64, Cache(), flip=True)
    picture = ImageOps.mirror(pictures.square(pictures.read(folder / "0.png"), 64))
    expected = latents.encode_image(components, pictures.to_tensor(picture)[None])[0]
    torch.testing.assert_close(whole.latents[0, 1], expected)
    assert not torch.equal(whole.latents[0, 0], whole.latents[0, 1])
