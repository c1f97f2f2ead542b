"""What may differ when a run is started again: sample prompts, pictures to validate with, trackers, the cache and its limit."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from folders import picture
from PIL import Image
from pydantic import ValidationError

from sdlora import training
from sdlora.commands import train as command
from sdlora.data import Cache
from sdlora.data import cache as caches
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig, again, gallery, record, validation
from sdlora.training.layout import Layout

HOUR = 3600.0


@pytest.fixture
def config(tmp_path, tiny_base):
    folders = {name: tmp_path / name for name in ("pictures", "held")}
    for number, folder in enumerate(folders.values()):
        for i in range(2):
            picture(folder / f"{i}.png", 10 * number + i)

    def make(**changes) -> TrainConfig:
        usual = {"steps": 2, "batch_size": 1, "rank": 2, "resolution": 32, "precision": "fp32", "save_every": 0, "base": str(tiny_base)}
        usual |= {"images": folders["pictures"], "output": tmp_path / "run", "samples": {"count": 0}, "schedule": "constant"}
        return TrainConfig(**usual | {"include": ("unet.mid",), "cache": tmp_path / "cache"} | changes)

    return make


def test_samples_of_other_prompts_are_drawn_anew_and_not_shown_beside_the_new_ones(config, components, tmp_path):
    place = Layout(tmp_path / "run")
    one, other = ({"prompts": (prompt,), "steps": 1} for prompt in ("a cat", "a dog"))
    command.carry_out(config(samples=one), progress=False, components=components)
    before = {step: place.sample(step).read_bytes() for step in (0, 2)}
    command.carry_out(config(samples=other, steps=3), progress=False, components=components)
    marks = {words: command.marks_of(config(samples=settings), [words]) for words, settings in (("a cat", one), ("a dog", other))}
    assert gallery.steps(place, marks["a dog"]) == [0, 3] and gallery.steps(place, marks["a cat"]) == [2]
    assert place.sample(0).read_bytes() != before[0] and place.sample(2).read_bytes() == before[2], "what was drawn before stays"
    with Image.open(place.sample(3)) as image:
        assert json.loads(image.info[gallery.KEY])["prompt"] == "a dog"


def test_losses_on_other_pictures_or_timesteps_are_forgotten_and_the_best_is_sought_anew(config, components, tmp_path, capsys):
    held, place = tmp_path / "held", Layout(tmp_path / "run")
    own = {"images": held, "timesteps": 2, "every": 1}
    training.train(config(validation=own), progress=False, components=components)
    first = validation.read(place.validation)
    assert [one.step for one in first] == [0, 1, 2] and len({one.pictures for one in first}) == 1 and first[0].pictures
    training.train(config(validation=own, steps=3), components=components)
    assert [one.step for one in validation.read(place.validation)] == [0, 1, 2, 3] and "forgotten" not in capsys.readouterr().err
    training.train(config(validation=own | {"timesteps": 3}, steps=4), components=components)
    said = " ".join(capsys.readouterr().err.split())
    assert "4 validation losses were of other pictures or timesteps and are forgotten; the best is sought anew" in said
    assert [(one.step, len(one.timesteps)) for one in validation.read(place.validation)] == [(4, 3)]
    picture(held / "9.png", 99)
    best = place.best.read_bytes()
    training.train(config(validation=own | {"timesteps": 3}, steps=5), progress=False, components=components)
    (last,) = validation.read(place.validation)
    assert last.step == 5 and last.pictures != first[0].pictures and place.best.read_bytes() != best


def test_a_tracker_is_told_the_picture_that_an_interruption_kept_from_it(config, components, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    samples = {"prompts": ("a cat",), "steps": 1}
    command.carry_out(config(samples=samples), progress=False, components=components)  # to the end, and nobody was told
    command.carry_out(config(samples=samples, trackers=("tensorboard",)), progress=False, components=components)
    events = EventAccumulator(str(Layout(tmp_path / "run").trackers / "pictures"))
    events.Reload()
    assert [event.step for event in events.Images("samples")] == [2]


def test_the_command_line_is_told_with_its_settings_and_without_its_secrets():
    words = ["/bin/sdlora", "train", "keep_tokens=2", "--hub-token=abc", "HF_TOKEN=abc", "api_key=abc", "max_norm=1", "token=abc"]
    assert record.command(words) == "sdlora train keep_tokens=2 --hub-token=… HF_TOKEN=… api_key=… max_norm=1 token=…"


def test_a_path_from_python_is_a_cache_also_without_a_slash(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, place in ((Path("own"), "own"), (Path("memory"), "memory"), (Path("a/b"), "a/b"), (tmp_path / "c", "c"), ("./d", "d")):
        assert caches.folder_of(config(cache=given).settled().cache) == tmp_path / place
    assert caches.folder_of(config(cache="memory").settled().cache) is None


def test_a_limit_of_the_cache_is_a_size_and_no_part_of_the_adapter(config):
    for wrong in ("20", "much", "-1GB"):
        with pytest.raises(ValidationError, match="write a number and a unit, such as 2GB"):
            config(cache_limit=wrong)
    with pytest.raises(ValidationError, match="cache_limit has no effect with cache=memory"):
        config(cache="memory", cache_limit="2GB")
    assert (
        config().cache_bytes == 10**11
        and config(cache_limit="").cache_bytes is None
        and config(cache_limit="1.5GiB").cache_bytes == 3 * 2**29
    )
    assert "cache_limit" not in again.written(config())


def test_a_cache_that_grew_too_large_loses_what_was_longest_unused_and_never_what_is_in_use(tmp_path):
    folder = tmp_path / "cache"
    size = Cache(folder)

    def entry(cache: Cache, name: str) -> Path:
        before = set(folder.rglob("*.safetensors"))
        cache.get(("latents", name), lambda: {"x": torch.zeros(1000)})
        (made,) = set(folder.rglob("*.safetensors")) - before
        return made

    old = [entry(size, str(number)) for number in range(4)]
    each = old[0].stat().st_size
    for number, path in enumerate(old):  # used 9, 8, 7 and 6 hours ago
        then = path.stat().st_mtime - (9 - number) * HOUR
        os.utime(path, (then, then))
    mine = Cache(folder, 3 * each)
    assert mine.trim() == 0 and all(path.exists() for path in old), "nothing was added, so nothing is looked at"
    mine.get(("latents", "0"), dict)  # the oldest, and used now
    then = old[0].stat().st_mtime - 9 * HOUR
    os.utime(old[0], (then, then))
    new = entry(mine, "new")
    assert mine.trim() == 2 * each
    assert [path.exists() for path in (*old, new)] == [True, False, False, True, True]
    assert Cache(folder, 0).trim() == 0
    none = Cache(folder, 0)
    last = entry(none, "last")
    none.trim()
    assert last.exists() and new.exists() and not old[0].exists(), "what another has used within the hour stays"
    off = Cache(folder)
    entry(off, "more")
    assert off.trim() == 0


def test_a_cache_takes_nothing_away_that_is_not_its_own_or_while_it_is_within_its_limit(tmp_path):
    def file(name: str, size: int = 1000) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0" * size)
        os.utime(path, (0, 0))
        return path

    name = hashlib.sha256(b"old").hexdigest()
    foreign = [file("v2/train/01/picture.png"), file("v3/train/01/style.safetensors"), file(f"v3/train/01/{name}.txt")]
    older = file(f"v2/latents/{name[:2]}/{name}.safetensors")
    half = file(f"v3/latents/{name[:2]}/.{name}-ab_12.tmp.safetensors")
    for limit, freed in ((10**6, 0), (0, 2000)):
        cache = Cache(tmp_path, limit)
        cache.get(("text", limit), lambda: {"x": torch.zeros(10)})
        assert cache.trim() == freed
        assert all(path.exists() for path in foreign) and older.exists() == half.exists() == (freed == 0)


def test_an_entry_whose_folder_another_run_takes_away_is_written_all_the_same(tmp_path, monkeypatch):
    plain, failed = caches.atomic.replacing, []

    def replacing(path):
        if not failed:
            failed.append(path)
            raise SdloraError("cannot write there; choose another")
        return plain(path)

    monkeypatch.setattr(caches.atomic, "replacing", replacing)
    cache = Cache(tmp_path)
    cache.get(("text",), lambda: {"x": torch.zeros(10)})
    assert failed == list(tmp_path.rglob("*.safetensors")) and cache.problem is None


def test_a_training_keeps_its_cache_within_the_limit(config, components, tmp_path):
    training.train(config(), progress=False, components=components)
    first = set((tmp_path / "cache").rglob("*.safetensors"))
    for path in first:
        then = path.stat().st_mtime - 2 * HOUR
        os.utime(path, (then, then))
    picture(tmp_path / "pictures" / "new.png", 5)
    training.train(config(output=tmp_path / "other", cache_limit="0"), progress=False, components=components)
    now = set((tmp_path / "cache").rglob("*.safetensors"))
    assert now and len(first - now) == 0, "this training uses them all"
    (tmp_path / "pictures" / "0.png").unlink()
    for path in now:
        then = path.stat().st_mtime - 2 * HOUR
        os.utime(path, (then, then))
    picture(tmp_path / "pictures" / "0.png", 6)
    training.train(config(output=tmp_path / "third", cache_limit="0"), progress=False, components=components)
    assert len(now - set((tmp_path / "cache").rglob("*.safetensors"))) == 2, "the latents and the caption of the picture that is gone"
