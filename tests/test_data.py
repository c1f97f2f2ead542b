"""Image folders: what is read, how a picture is prepared, and that nothing is encoded twice or stale."""

import folders
import pytest
import torch
from PIL import Image

from sdlora import conditioning, data, latents
from sdlora.data import Cache, DataSettings, encode, gather, pictures
from sdlora.errors import SdloraError
from sdlora.training import text


@pytest.fixture
def folder(tmp_path):
    return folders.pictures(tmp_path, ((64, 80),) * 3, "picture {},\n flat emoji\n")


def test_a_scan_gives_images_and_captions_in_the_order_of_their_names(folder):
    (folder / "LICENSE").write_text("none")
    (folder / ".hidden.png").write_text("none")
    assert [(e.path.name, e.caption) for e in data.scan(folder)] == [(f"{i}.png", f"picture {i}, flat emoji") for i in range(3)]


def test_a_linked_folder_is_read_unless_it_leads_back_up(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("9.png", "9.txt"):
        (elsewhere / name).write_bytes((folder / name.replace("9", "1")).read_bytes())
    (folder / "back").symlink_to(folder, target_is_directory=True)
    (folder / "linked").symlink_to(elsewhere, target_is_directory=True)
    assert [e.path.name for e in data.scan(folder)] == ["0.png", "1.png", "2.png", "9.png"]


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


def test_a_missing_folder_is_refused(folder):
    with pytest.raises(SdloraError, match="does not exist"):
        data.scan(folder / "no")


def shown(settings: DataSettings) -> list[tuple]:
    return [(e.path.name, e.caption, e.repeats, e.weight, e.regular) for e in gather(settings).examples]


@pytest.fixture
def kohya(tmp_path):
    """Folders as kohya's scripts want them, with a run's output among them."""
    for name in ("10_zwx cat", "2019_summer", "0_out", "plain/in", "run/prior"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), "red").save(tmp_path / name / f"{name[:2]}.png")
    (tmp_path / "2019_summer" / "20.caption").write_text("a beach")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "plain/in/pl.png", "text": ["one", "two"]}')
    return tmp_path


def test_folders_say_by_their_names_how_often_and_what_they_are(kohya):
    settings = DataSettings(images=kohya)
    object.__setattr__(settings, "output", kohya / "run")
    summer = ("20.png", "a beach", 1, 1.0, False)
    cat = ("10.png", "zwx cat", 10, 1.0, False)
    assert shown(settings) == [cat, summer, ("pl.png", "one", 1, 1.0, False)], "no run folder, and 0 leaves out"
    assert shown(DataSettings(images=kohya / "10_zwx cat")) == [cat], "the leaf itself"
    assert gather(settings).examples[2].captions == ("one", "two")
    (kohya / "plain" / "metadata.jsonl").write_text('{"file_name": "in/pl.png", "text": "nearer"}')
    assert gather(settings).examples[2].captions == ("nearer",)


def test_tables_say_what_is_different_about_sub_folders(kohya):
    tables = [
        {"path": "10_zwx cat", "repeats": 3, "weight": 0.5, "trigger": "zwx", "prefix": "photo, "},
        {"path": "plain", "regularisation": True},
        {"path": "run", "caption": "drawn"},
    ]
    own = DataSettings(images=kohya, folders=tuple(tables), trigger="sks", insert_trigger=True)
    assert shown(own) == [
        ("10.png", "sks, photo, zwx cat", 3, 0.5, False),
        ("20.png", "sks, a beach", 1, 1.0, False),
        ("pl.png", "one", 1, 1.0, True),
        ("ru.png", "sks, drawn", 1, 1.0, False),
    ]
    with pytest.raises(SdloraError, match="folders names 'plan', which is no folder .* did you mean plain"):
        gather(DataSettings(images=kohya, folders=({"path": "plan"},)))
    regular = DataSettings(images=kohya / "2019_summer", regularisation=kohya / "10_zwx cat", caption="sks")
    assert shown(regular) == [("20.png", "a beach", 1, 1.0, False), ("10.png", "zwx cat", 10, 1.0, True)]


def test_the_fingerprint_knows_what_is_trained_on_and_not_where_it_lies(folder, tmp_path_factory):
    first = data.fingerprint(data.scan(folder))
    moved = tmp_path_factory.mktemp("moved") / "there"
    folder.rename(moved)
    assert data.fingerprint(data.scan(moved)) == first

    def of(**changes):
        return data.fingerprint(gather(DataSettings(images=moved, **changes)).examples)

    others = [of(folders=({"path": ".", "repeats": 2},)), of(folders=({"path": ".", "weight": 2.0},)), of(masks="alpha")]
    assert of() == first and len({first, *others}) == 4


def test_an_unreadable_picture_is_left_out_and_named_or_refused(folder):
    (folder / "1.png").write_text("none")
    found = gather(DataSettings(images=folder))
    assert len(found.examples) == 2 and "1.png is not a readable image" in found.skipped[0]
    with pytest.raises(SdloraError, match="1.png is not a readable image"):
        gather(DataSettings(images=folder, strict=True))
    for name in "02":
        (folder / f"{name}.png").write_text("none")
    with pytest.raises(SdloraError, match="no picture in .* can be trained on: .*0.png"):
        gather(DataSettings(images=folder))


def test_a_caption_for_all_serves_images_without_one(folder):
    (folder / "1.txt").unlink()
    assert [e.caption for e in data.scan(folder, "a robot")] == ["picture 0, flat emoji", "a robot", "picture 2, flat emoji"]


DAMAGE = (lambda b: b[: len(b) // 2], lambda b: b"no picture", lambda b: b[:200] + b"xx" + b[202:], lambda b: b"")


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_corrupt_image_is_named(folder, damage):
    path = folder / "1.png"
    path.write_bytes(damage(path.read_bytes()))
    assert "1.png is not a readable image" in pictures.problem(path)
    with pytest.raises(SdloraError, match="1.png is not a readable image .*; replace it"):
        pictures.read(path)


def test_nothing_is_encoded_twice(folder, components, tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache")
    first = Cache(place)
    found = data.scan(folder)
    one = encode(found, components, 64, first, flip=True)
    captions = [e.caption for e in found]
    texts = text.cached(captions, components, first)(captions)
    views = one.rows[0].views[0]  # three captions, and what stands for none
    assert first.made == 3 * 2 + 4 and len(one) == 3 and [view.latents.shape for view in views] == [(4, 16, 16)] * 2

    def fail(*args):
        raise AssertionError("encoded again")

    monkeypatch.setattr(latents, "encode_image", fail)
    monkeypatch.setattr(conditioning, "encode_chunks", fail)
    second = Cache(place)
    again = encode(data.scan(folder), components, 64, second, flip=True)
    for row, other in zip(again.rows, one.rows, strict=True):
        assert all(torch.equal(a.latents, b.latents) for a, b in zip(row.views[0], other.views[0], strict=True))
    assert torch.equal(text.cached(captions, components, second)(captions).context, texts.context)
    assert second.made == 0


def test_what_changed_is_encoded_anew_and_only_that(folder, components, tmp_path_factory):
    place = tmp_path_factory.mktemp("cache")

    def made(size: int = 64) -> int:
        cache = Cache(place)
        found = data.scan(folder)
        encode(found, components, size, cache)
        text.cached([e.caption for e in found], components, cache)
        return cache.made

    assert made() == 7 and made() == 0  # three pictures, three captions, and what stands for none
    Image.new("RGB", (64, 64), "red").save(folder / "1.png")
    assert made() == 1
    (folder / "2.txt").write_text("another")
    assert made() == 1
    (folder / "0.png").rename(folder / "9.png")
    (folder / "0.txt").rename(folder / "9.txt")
    assert made() == 0
    assert made(32) == 3
    for damaged in place.rglob("*.safetensors"):
        damaged.write_bytes(b"x")
    assert made() == 7 and made(32) == 3


def test_the_mirrored_view_is_the_latent_of_the_mirrored_picture(folder, components):
    from PIL import ImageOps

    whole = encode(data.scan(folder), components, 64, Cache(), flip=True)
    plain, mirrored = (view.latents for view in whole.rows[0].views[0])
    picture = ImageOps.mirror(ImageOps.fit(pictures.read(folder / "0.png"), (64, 64), Image.Resampling.LANCZOS))
    torch.testing.assert_close(mirrored, latents.encode_image(components, pictures.to_tensor(picture)[None])[0])
    assert not torch.equal(plain, mirrored)
