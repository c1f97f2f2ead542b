"""From a folder to batches: nothing is encoded twice or stale, and what a picture's n-th showing is depends on nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from folders import LONG
from nasty import scene
from PIL import Image
from trainings import Crash, crashing, sha

from sdlora import apply, conditioning, latents, training
from sdlora.data import Cache
from sdlora.data.weights import weights_hash
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig, batches, session, sources


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, (width, height) in enumerate(((48, 32), (32, 48), (32, 32), (64, 32), (40, 40))):
        scene(i, width, height).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}, sks style, a, b, c")
    return folder


@pytest.fixture
def config(pictures, tmp_path):
    def make(**changes) -> TrainConfig:
        usual = {"steps": 4, "batch_size": 2, "rank": 2, "resolution": 32, "precision": "fp32", "save_every": 0, "learning_rate": 1e-2}
        usual |= {"images": pictures, "output": tmp_path / "run", "cache": "memory", "warmup": 0}
        return TrainConfig(**usual | changes)

    return make


@pytest.fixture
def prepared(components):
    """A function config -> the sources of a training, encoded."""

    def make(settings: TrainConfig, cache: Cache | None = None, say=lambda line: None):
        fitted = session.fitted(settings.settled(), components)
        return sources.made(sources.gathered(fitted), components, fitted, cache or Cache(), fitted.output, None, say)

    return make


def all_batches(prepared, settings: TrainConfig):
    made = prepared(settings)
    return [batch for step in range(settings.steps) for batch in batches.batches(made, settings, step, 1000)]


def test_only_what_changed_is_encoded_again(config, prepared, components, pictures, tmp_path, monkeypatch):
    """Each change, and how many latents and texts it costs; going back costs nothing."""
    counts = {"latents": 0, "text": 0}
    encode_image, encode_chunks = latents.encode_image, conditioning.encode_chunks

    def count(kind, real):
        def counted(*args):
            counts[kind] += 1
            return real(*args)

        return counted

    monkeypatch.setattr(latents, "encode_image", count("latents", encode_image))
    monkeypatch.setattr(conditioning, "encode_chunks", count("text", encode_chunks))

    def cost(**changes) -> tuple[int, int]:
        counts.update(latents=0, text=0)
        settings, cache = config(steps=20, **changes), Cache(tmp_path / "cache")
        sources.prompts(prepared(settings, cache), components, settings, cache, learns=False)
        return counts["latents"], counts["text"]

    def without_trace(module, **changes):
        parameter = next(module.parameters())
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter[0] += 0.01
            changed = cost(**changes)
            parameter.copy_(kept)
        return changed

    assert cost() == (5, 6) and cost() == (0, 0), "five pictures, five captions and no caption"
    (pictures / "1.txt").write_text("another, sks style")
    assert cost() == (0, 1)
    scene(77, 32, 48).save(pictures / "1.png")
    assert cost() == (1, 0)
    for suffix in ("png", "txt"):
        (pictures / f"0.{suffix}").rename(pictures / f"renamed.{suffix}")
    assert cost() == (0, 0), "a name does not count"
    assert cost(resolution=64) == (5, 0) and cost(resolution=(32, 64)) == (0, 0)
    assert cost(flip=True) == (5, 0), "the mirror images"
    assert cost(buckets={"on": False}) == (1, 0), "all but the widest have the square as their bucket"
    assert cost(vae_tiling=True) == (0, 0), "tiling is a property of the loaded VAE, not of the setting"
    assert without_trace(components.vae) == (5, 0) and without_trace(components.text_encoders[0]) == (0, 6)
    assert without_trace(components.unet) == (0, 0), "neither latents nor texts know the U-Net"
    assert cost(clip_skip=2) == (0, 6) and cost(background="black") == (5, 0)
    shuffled = config(shuffle_tags=True, caption_variants=4)
    found = sources.gathered(shuffled).examples
    new = {text for example in found for text in sources.wordings(example, shuffled)} - {example.caption for example in found}
    assert cost(shuffle_tags=True, caption_variants=4) == (0, len(new)) and len(new) > 10
    assert cost(crop="random", crops=2) == (6, 0), "two crops of the three pictures that do not fit"
    assert cost() == (0, 0)


def test_a_second_run_encodes_nothing(config, components, tmp_path, monkeypatch):
    first = training.train(config(cache=str(tmp_path / "cache")), progress=False, components=components)

    def fail(*args):
        raise AssertionError("encoded again")

    monkeypatch.setattr(latents, "encode_image", fail)
    monkeypatch.setattr(conditioning, "encode_chunks", fail)
    second = training.train(config(cache=str(tmp_path / "cache"), output=tmp_path / "second"), progress=False, components=components)
    assert second.read_bytes() == first.read_bytes()
    names = {path.parts[-3] for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert names == {"latents", "text"}


def test_the_adapter_does_not_depend_on_where_the_cache_is(config, components, tmp_path):
    places = {"memory": "memory", "shared": "shared", "folder": str(tmp_path / "cache")}
    made = {
        name: training.train(config(cache=place, output=tmp_path / name), progress=False, components=components)
        for name, place in places.items()
    }
    assert len({path.read_bytes() for path in made.values()}) == 1


def test_a_networks_hash_is_of_its_weights_and_its_configuration(loaded, components):
    one, other = weights_hash(components.vae), weights_hash(loaded("sd1").vae)
    assert one != other and one == weights_hash(components.vae)
    xl = loaded("sdxl").vae
    assert weights_hash(xl) != other, "the scaling factor is another"


def test_batches_are_of_one_size_and_every_picture_comes_equally_often(config, prepared):
    settings = config(steps=30, batch_size=3, flip=True)
    made = all_batches(prepared, settings)
    assert {tuple(batch.latents.shape) for batch in made} == {(3, 4, 8, 8), (3, 4, 4, 12)}
    seen = [caption for batch in made for caption in batch.captions]
    assert max(map(seen.count, set(seen))) - min(map(seen.count, set(seen))) <= 4 and len(set(seen)) == 5
    for batch in made:
        assert torch.equal(batch.time_ids[:, 4:] / 4, torch.tensor(batch.latents.shape[-2:]).float().expand(3, 2))


def test_a_showing_of_a_picture_depends_on_neither_batch_size_nor_accumulation(config, prepared):
    shared = {"shuffle_tags": True, "tag_dropout": 0.3, "caption_dropout": 0.2, "flip": True, "crop": "random", "buckets": {"on": False}}
    one, two, three = (
        all_batches(prepared, config(steps=steps, batch_size=size, accumulate=parts, **shared))
        for steps, size, parts in ((24, 1, 1), (4, 6, 1), (4, 3, 2))
    )
    for other in (two, three):
        assert [c for b in one for c in b.captions] == [c for b in other for c in b.captions]
        for name in ("latents", "time_ids", "noise"):
            assert torch.equal(torch.cat([getattr(b, name) for b in one]), torch.cat([getattr(b, name) for b in other])), name
    again = all_batches(prepared, config(steps=4, batch_size=6, seed=1, **shared))
    assert [b.captions for b in again] != [b.captions for b in two]


def test_random_crops_differ_and_sdxl_is_told_which(config, prepared):
    (source,) = prepared(config(steps=50, crop="random", crops=3, flip=True))
    assert [len(row.views) for row in source.data.rows] == [3, 3, 1, 3, 1], "two of the pictures fit as they are"
    wide = source.data.rows[0]  # 48 × 32 pixels, of which 32 × 32 are seen
    assert len({crop[0].sizes.crop for crop in wide.views}) > 1
    assert len({crop[0].latents.sum().item() for crop in wide.views}) == 3
    for plain, mirrored in wide.views:
        assert abs(plain.sizes.crop[1] + mirrored.sizes.crop[1] - 16) <= 1 and plain.sizes.original == mirrored.sizes.original == (32, 48)
    short = prepared(config(steps=1, crop="random", crops=16))[0]
    assert all(len(row.views) <= 3 for row in short.data.rows), "no more crops are made than a short training asks for"


def test_a_picture_that_turns_out_broken_leaves_enough_of_the_others(config, prepared, pictures):
    scene(90, 48, 32).save(pictures / "9.jpg", quality=95)
    (pictures / "9.jpg").write_bytes((pictures / "9.jpg").read_bytes()[:-400])  # its header is whole
    (pictures / "9.txt").write_text("broken")
    for i in range(1, 5):
        (pictures / f"{i}.png").unlink()
    said = []
    settings = config(steps=8, batch_size=1, crop="random", crops=8)
    made = prepared(settings, say=said.append)
    shown = [batch for step in range(8) for batch in batches.batches(made, settings, step, 1000)]
    assert len({batch.latents.sum().item() for batch in shown}) == 8, "the one that is left is shown in all its crops"
    assert [line for line in said if "left out" in line and "9.jpg" in line] and len(made[0].data) == 1


def test_every_picture_is_trained_at_every_resolution(config, prepared):
    made = all_batches(prepared, config(steps=40, batch_size=1, resolution=(32, 64)))
    areas = [batch.time_ids[0, 4:].prod().item() for batch in made]
    small = [caption for batch, area in zip(made, areas, strict=True) if area <= 32**2 for caption in batch.captions]
    large = [caption for batch, area in zip(made, areas, strict=True) if area > 32**2 for caption in batch.captions]
    assert {small.count(c) for c in set(small)} == {4} and {large.count(c) for c in set(large)} == {4}
    assert set(small) == set(large) and len(set(small)) == 5


def test_repeats_weights_and_class_pictures_reach_the_batch(config, prepared, pictures):
    (pictures / "3_extra").mkdir()
    (pictures / "reg").mkdir()
    scene(20, 32, 32).save(pictures / "3_extra" / "x.png")
    scene(21, 32, 32).save(pictures / "reg" / "y.png")
    tables = ({"path": "3_extra", "weight": 0.5}, {"path": "reg", "regularisation": True, "caption": "a class"})
    settings = config(steps=16, batch_size=1, folders=tables, buckets={"on": False}, prior={"weight": 0.25, "batch_size": 2})
    made = all_batches(prepared, settings)
    assert all(batch.captions[1:] == ("a class",) * 2 and batch.weights[1:].tolist() == [0.125] * 2 for batch in made)
    own = [(batch.captions[0], batch.weights[0].item()) for batch in made]
    assert own.count(("extra", 0.5)) == 6 and sum(weight == 1.0 for _, weight in own) == 10


def test_masks_are_cut_and_mirrored_as_their_pictures_are(config, prepared, pictures):
    mask = np.zeros((32, 48), np.uint8)
    mask[:, :24] = 255
    Image.fromarray(mask).save(pictures / "0-masklabel.png")
    made = all_batches(prepared, config(steps=40, batch_size=1, masks="files", flip=True))
    halves = {tuple(b.masks[0, 0].mean(0).tolist()) for b in made if b.captions[0].startswith("picture 0")}
    width = next(b.latents.shape[-1] for b in made if b.captions[0].startswith("picture 0"))
    left = (1.0,) * (width // 2) + (0.0,) * (width // 2)
    assert halves == {left, left[::-1]}, "as it is and mirrored"
    assert all(b.masks is None or b.masks.shape == (1, 1, *b.latents.shape[-2:]) for b in made)
    assert not any(b.masks is not None for b in made if not b.captions[0].startswith("picture 0"))
    soft = all_batches(prepared, config(steps=40, batch_size=1, masks="files", loss={"unmasked_weight": 0.25}))
    assert {b.masks.min().item() for b in soft if b.masks is not None} == {0.25}
    with pytest.raises(SdloraError, match="masks is files, and .* has none"):
        (pictures / "0-masklabel.png").unlink()
        prepared(config(masks="files"))
    assert all(batch.masks is None for batch in all_batches(prepared, config(masks="alpha"))), "nothing is transparent"


EVERYTHING = {"shuffle_tags": True, "tag_dropout": 0.2, "caption_dropout": 0.2, "flip": True, "crop": "random", "resolution": (32, 64)}


@pytest.mark.parametrize("targets", [("attention",), ("text_attention",)])
def test_with_everything_on_a_run_that_crashed_ends_like_one_that_did_not(config, components, tmp_path, targets, pictures):
    (pictures / "2.txt").write_text(LONG)

    def train(name: str) -> Path:
        settings = config(output=tmp_path / name, save_every=2, targets=targets, cache=str(tmp_path / "cache"), **EVERYTHING)
        return training.train(settings, progress=False, components=components)

    whole = train("whole")
    with crashing(3), pytest.raises(Crash):
        train("broken")
    assert sha(train("broken")) == sha(whole)
    apply.eject(components.modules)
