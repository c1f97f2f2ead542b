"""The validation loss: always the same question, and asking it changes nothing."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from folders import picture
from trainings import sha

from sdlora import conditioning, files, training
from sdlora.data import Cache, encode, scan
from sdlora.data.folder import Example
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig, draws, heldout, planning, validation
from sdlora.training.layout import Layout


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        picture(tmp_path / "pictures" / f"{i}.png", i)
    picture(tmp_path / "held" / "a.png", 100)
    picture(tmp_path / "held" / "b.png", 101)
    return tmp_path


@pytest.fixture
def train(folder, components):
    def go(name: str, **changes) -> Layout:
        usual = {"steps": 3, "batch_size": 2, "rank": 2, "resolution": 32, "precision": "fp32", "save_every": 1, "learning_rate": 1e-2}
        usual |= {"images": folder / "pictures", "output": folder / name, "caption_dropout": 0.3}
        training.train(TrainConfig(**usual | changes), progress=False, components=components)
        return Layout(folder / name)

    return go


def test_of_several_captions_runs_with_other_seeds_are_validated_with_the_same(folder, components):
    held = [Example(folder / "held" / "a.png", ("one", "two", "three", "four"))]
    usual = {"images": folder / "pictures", "output": folder / "run", "resolution": 32}
    configs = [TrainConfig(**usual, seed=seed).settled() for seed in range(6)]
    found = [heldout.encoded(held, components, config, Cache(), print).source.data.rows[0].wordings[0] for config in configs]
    assert len(set(found)) == 1 and found[0] in held[0].captions


def test_a_training_that_is_validated_is_the_one_that_is_not(train, folder):
    plain = train("plain", targets=("attention", "text_attention"))
    watched = train("watched", targets=("attention", "text_attention"), validation={"images": folder / "held", "every": 1, "timesteps": 2})
    for name in ("adapter.safetensors", "step-000001.safetensors", "step-000002.safetensors"):
        assert sha(plain.folder / name) == sha(watched.folder / name)
    scores = validation.read(watched.validation)
    assert [s.step for s in scores] == [0, 1, 2, 3] and not plain.validation.exists()
    best = min(scores[1:], key=lambda s: s.loss)
    same = watched.adapter if best.step == 3 else watched.checkpoint(best.step)
    kept, saved = (files.read(path).layers for path in (watched.best, same))
    assert all(torch.equal(kept[name].a, saved[name].a) and torch.equal(kept[name].b, saved[name].b) for name in saved)


def test_the_loss_at_the_start_is_the_bases_own(train, folder, components):
    """Against the base itself, without the trained layers, and diffusers' way to add noise."""
    from diffusers import DDPMScheduler

    place = train("run", steps=1, validation={"images": folder / "held", "timesteps": 4})
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    held, times = scan(folder / "held"), torch.tensor([125, 375, 625, 875])
    data, losses = encode(held, components, 32, Cache()), []
    for row, example in enumerate(held):
        clean = data.rows[row].views[0][0].latents.expand(4, -1, -1, -1)
        noise = torch.stack([draws.normal(tuple(clean.shape[1:]), 0, f"validation {example.digest[:16]}", i) for i in range(4)])
        with torch.no_grad():
            hint = conditioning.encode_text(components, [example.caption] * 4)
            said = components.unet(scheduler.add_noise(clean, noise, times), times, hint.context).sample
        losses.append((said - noise).square().mean((1, 2, 3)).double())
    start = validation.read(place.validation)[0]
    assert start.timesteps == tuple(times.tolist())
    np.testing.assert_allclose(start.losses, torch.stack(losses).mean(0).numpy(), rtol=1e-5)
    assert start.loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_its_value_depends_on_neither_the_runs_seed_nor_the_other_settings_of_its_loss(train, folder):
    held = {"images": folder / "held", "timesteps": 2}
    one = train("one", steps=1, seed=1, validation=held)
    other = train("other", steps=1, seed=2, batch_size=1, min_snr=0.0, validation=held)
    assert validation.read(one.validation)[0] == validation.read(other.validation)[0]


def test_what_is_held_out_follows_from_each_pictures_bytes_alone(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.png").write_bytes(f"picture {i}".encode())
    examples = [Example(tmp_path / f"{i}.png", ("a",)) for i in range(60)]
    held = heldout.shares(examples, 0.25)
    assert 5 <= len(held) <= 25 and heldout.shares(examples, 0.0) == []
    some = [e for e in examples if int(e.path.stem) % 3]
    assert heldout.shares(some, 0.25) == [e for e in held if e in some], "without some pictures the others stay where they were"
    assert set(held) <= set(heldout.shares(examples, 0.5))
    (tmp_path / "copy.png").write_bytes(held[0].path.read_bytes())
    assert Example(tmp_path / "copy.png", ("b",)) in heldout.shares([*examples, Example(tmp_path / "copy.png", ("b",))], 0.25)
    assert len(heldout.shares(examples[:3], 1e-9)) == 1, "one at least"
    with pytest.raises(SdloraError, match="validation.fraction 0.99 holds out all 2 pictures"):
        heldout.shares(examples[:2], 0.99)


def test_a_share_that_is_held_out_is_not_trained_on(train, folder):
    place = train("run", steps=1, validation={"fraction": 0.3, "timesteps": 1})
    parts = {entry["file"]: entry["part"] for entry in json.loads(place.manifest.read_text())}
    assert sorted(parts) == ["0.png", "1.png", "2.png", "3.png"] and set(parts.values()) == {"images", "validation"}
    header = json.loads(files.read_metadata(place.adapter)[files.SETTINGS])
    assert header["images"] == list(parts.values()).count("images") and header["validation"] == {"fraction": 0.3}


def test_a_picture_that_is_trained_on_cannot_validate(train, folder):
    picture(folder / "held" / "c.png", 2)
    with pytest.raises(SdloraError, match="c.png lies in .*held and in .*pictures; take it out of one of them"):
        train("run", validation={"images": folder / "held"})


@pytest.mark.parametrize("settings", [{"every": 3}, {"timesteps": 2}, {"images": "x", "fraction": 0.1}])
def test_settings_of_a_validation_that_is_none_or_two_are_refused(folder, settings):
    with pytest.raises(ValueError, match="validation has"):
        TrainConfig(images=folder / "pictures", output=folder / "run", validation=settings)


def test_the_verdict_compares_with_the_start():
    def score(step, loss):
        return validation.Score(step, loss, (500,), (loss,))

    assert validation.verdict([score(0, 0.5), score(2, 0.3), score(4, 0.4)]) == "best validation loss 0.3000 at step 2; 0.5000 at the start"
    assert "no step has a better validation loss than the start's 0.2000" in validation.verdict([score(0, 0.2), score(2, 0.3)])
    assert validation.verdict([score(0, 0.2)]) is None


def test_a_loss_that_is_no_number_is_never_the_best_and_is_written_as_json_can(tmp_path):
    scores = [validation.Score(2, float("nan"), (500,), (float("inf"),)), validation.Score(4, 0.5, (500,), (0.5,))]
    for one in scores:
        validation.append(tmp_path / "a.jsonl", one)
    assert "NaN" not in (tmp_path / "a.jsonl").read_text()
    again, others = validation.rewind(tmp_path / "a.jsonl", 4, SimpleNamespace(pictures="p", strata=1))
    assert others == 0 and validation.best(again) == scores[1] and again[0].loss != again[0].loss


def test_the_plan_says_what_is_held_out(folder, tiny_base):
    settings = TrainConfig(
        images=folder / "pictures", output=folder / "run", base=str(tiny_base), validation={"images": folder / "held", "every": 7}
    )
    assert "2 images, validated every 7 steps" in "\n".join(planning.lines(planning.plan(settings)))
