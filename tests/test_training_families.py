"""Training of SD 2.x and SDXL: the loss, the parts, resuming, memory; and the trained adapter in stock diffusers with PEFT."""

from pathlib import Path

import folders
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from trainings import Crash, crashing, sha

from sdlora import apply, conditioning, files, models, training
from sdlora.data import Cache
from sdlora.data.buckets import Frames, framed
from sdlora.data.encode import embedding
from sdlora.data.pictures import extent
from sdlora.errors import SdloraError
from sdlora.layers import named_layers
from sdlora.training import TrainConfig, batches, loop, planning

TEXT = ("attention", "text_attention", "text_attention_2")


@pytest.fixture
def pictures(tmp_path):
    return folders.pictures(tmp_path / "pictures", ((96, 64), (64, 128)))


@pytest.fixture
def running(loaded, pictures, in_memory):
    """A function (kind, config) -> a Run in memory."""
    return lambda kind, config: in_memory(config, loaded(kind), pictures)


@pytest.fixture
def config(pictures, tmp_path):
    def make(**changes) -> TrainConfig:
        usual = {"steps": 3, "batch_size": 1, "rank": 2, "resolution": 64, "precision": "fp32", "save_every": 0, "learning_rate": 1e-2}
        usual["buckets"] = {"on": False}
        return TrainConfig(**{"images": pictures, "output": tmp_path / "run"} | usual | changes)

    return make


def first_batch(run):
    return batches.batches(run.sources, run.config, 0, 1000)[0]


def test_the_loss_of_a_v_base_is_the_one_of_diffusers_own_training(config, running):
    from diffusers import DDPMScheduler

    run = running("sd2_v", config(min_snr=5.0))
    batch, unet = first_batch(run), run.components.unet
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction")
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    wanted = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
    hint = conditioning.encode_text(run.components, list(batch.captions))
    with torch.no_grad():
        said = unet(noisy, batch.timesteps, hint.context).sample
        bar = scheduler.alphas_cumprod[batch.timesteps]
        snr = bar / (1 - bar)
        expected = ((said - wanted) ** 2).mean((1, 2, 3)) * snr.clamp(max=5.0) / (snr + 1)
        torch.testing.assert_close(loop.batch_loss(run, batch), expected.mean(), rtol=1e-5, atol=0)


def test_sdxl_is_trained_with_the_sizes_of_each_picture(config, running, pictures):
    run = running("sdxl", config(batch_size=2, min_snr=0))
    batch = first_batch(run)
    by_caption = dict(zip(batch.captions, batch.time_ids.tolist(), strict=True))
    assert by_caption == {"picture 0, sks style": [64, 96, 0, 16, 64, 64], "picture 1, sks style": [128, 64, 32, 0, 64, 64]}
    hint = conditioning.encode_text(run.components, list(batch.captions))
    bar = run.components.alphas_bar[batch.timesteps].view(-1, 1, 1, 1)
    noisy = bar.sqrt() * batch.latents + (1 - bar).sqrt() * batch.noise
    added = {"text_embeds": hint.pooled, "time_ids": batch.time_ids}
    with torch.no_grad():
        said = run.components.unet(noisy, batch.timesteps, hint.context, added_cond_kwargs=added).sample
        torch.testing.assert_close(loop.batch_loss(run, batch), (said - batch.noise).square().mean(), rtol=1e-5, atol=0)


def test_the_sizes_follow_the_turn_of_a_photograph(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn: what is seen is 40 high and 20 wide
    image.save(tmp_path / "a.jpg", exif=exif)
    assert framed(extent(tmp_path / "a.jpg"), Frames((16,)), 16).sizes().numbers == (40, 20, 8, 0, 16, 16)


def test_the_cache_keeps_the_pooled_embedding_and_what_stands_for_no_prompt(loaded, tmp_path, monkeypatch):
    components = loaded("sdxl")
    first = embedding("a cat", components, Cache(tmp_path))
    nothing = embedding(None, components, Cache(tmp_path))
    monkeypatch.setattr(conditioning, "encode_chunks", None)
    again = embedding("a cat", components, Cache(tmp_path))
    assert torch.equal(first.context, again.context) and torch.equal(first.pooled, again.pooled)
    assert first.context.shape == (1, 77, 64) and first.pooled.shape == (1, 40)
    assert not nothing.context.any() and not nothing.pooled.any()
    assert not embedding(None, components, Cache(tmp_path)).pooled.any()


def test_text_encoders_that_learn_say_what_the_cached_ones_do(loaded):
    from sdlora.training import text

    captions = ["a cat", "", None, "a dog, 3d emoji", "a cat"]
    known = [caption for caption in captions if caption is not None]
    components = loaded("sdxl")
    anew, kept = text.encoded(known, components)(captions), text.cached(known, components, Cache())(captions)
    torch.testing.assert_close(anew.context, kept.context)
    torch.testing.assert_close(anew.pooled, kept.pooled)
    assert not anew.context[2].any() and anew.context[1].any(), "a dropped caption is no prompt, an empty one is an encoded one"


def test_every_part_has_its_own_rank_alpha_and_rate(config, running):
    wanted = {"targets": TEXT, "text_encoder": {"rank": 3, "alpha": 1.0}, "text_encoder_2": {"rank": 5, "learning_rate": 1e-4}}
    run = running("sdxl", config(text_learning_rate=1e-3, **wanted))
    layers = run.adapter().layers
    found = {
        component: {(u.rank, u.alpha) for name, u in layers.items() if name.startswith(component + ".")}
        for component in run.components.modules
    }
    assert found == {"unet": {(2, 2.0)}, "text_encoder": {(3, 1.0)}, "text_encoder_2": {(5, 5.0)}}
    assert list(run.rates) == [1e-2, 1e-3, 1e-4]
    start = [p.detach().clone() for p in run.parameters]
    list(loop.steps(run, 2))
    still = [i for i, (a, b) in enumerate(zip(start, run.parameters, strict=True)) if torch.equal(a, b)]
    names = [name for name, layer in named_layers(run.components.modules).items() if name in layers]
    # the penultimate states of text_encoder do not know its last layer; the pooled embedding knows all of text_encoder_2
    assert {names[i // 2].rpartition(".self_attn")[0] for i in still} <= {"text_encoder.text_model.encoder.layers.11"}


def test_a_part_that_is_switched_off_gets_nothing(config, running):
    run = running("sdxl", config(targets=TEXT, text_encoder={"train": False}, unet={"train": False}))
    assert {name.partition(".")[0] for name in run.adapter().layers} == {"text_encoder_2"}
    assert [target.name for target in planning.targets_of(run.config, run.components.modules)] == ["text_attention_2"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"text_encoder": {"rank": 4}}, "text_encoder has settings, but nothing in it is trained"),
        ({"unet": {"train": False}}, "every part that has a target is switched off"),
        ({"targets": TEXT, "text_encoder": {"train": False, "alpha": 1.0}}, "text_encoder has settings, but nothing in it is trained"),
    ],
)
def test_settings_without_effect_are_refused(config, settings, message):
    with pytest.raises(ValidationError, match=message):
        config(**settings)


def test_a_second_text_encoder_is_refused_where_there_is_none(config, running):
    with pytest.raises(SdloraError, match="text_attention_2"):
        running("sd1", config(targets=("attention", "text_attention_2")))


@pytest.mark.parametrize("kind, targets", [("sd1", ("attention", "text_attention")), ("sdxl", TEXT)])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(config, running, kind, targets):
    from sdlora.training.placement import checkpointing

    results = []
    for on in (False, True):
        run = running(kind, config(targets=targets, gradient_checkpointing=on))
        with torch.no_grad():
            for i, p in enumerate(run.parameters):
                p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        calls = []
        inside = [m for e in run.components.text_encoders for m in e.modules() if type(m).__name__ == "CLIPEncoderLayer"]
        inside = [layer.layer_norm1 for layer in inside] + [run.components.unet.up_blocks[-1].resnets[0].norm1]
        handles = [module.register_forward_hook(lambda m, *_, calls=calls: calls.append(m)) for module in inside]
        with checkpointing(run.components, run.config):
            loss = loop.batch_loss(run, first_batch(run))
            loss.backward()
        for handle in handles:
            handle.remove()
        results.append((loss.detach(), [p.grad for p in run.parameters], len(calls)))
    assert torch.equal(results[0][0], results[1][0])
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
    assert results[1][2] >= 2 * results[0][2] - 1, "what is not kept is computed twice"  # SDXL does not use the very last layer


@pytest.mark.parametrize(
    "kind, changes", [("sdxl", {"targets": TEXT, "caption_dropout": 0.3}), ("sd2_v", {}), ("sd1", {"precision": "fp16"})]
)
def test_a_run_that_crashed_ends_in_the_bytes_of_one_that_did_not(config, loaded, tmp_path, kind, changes):
    def train(name: str) -> Path:
        settings = config(output=tmp_path / name, steps=4, save_every=2, **changes)
        return training.train(settings, progress=False, components=loaded(kind))

    whole = train("whole")
    with crashing(3), pytest.raises(Crash):
        train("broken")
    assert sha(train("broken")) == sha(whole)


def test_a_base_that_the_training_loaded_itself_is_let_go_of_once_all_is_encoded(config, bases, monkeypatch):
    seen = []
    real = loop.batch_loss

    def watch(run, batch):
        seen.append(
            [next(module.parameters()).is_meta for module in (run.components.unet, run.components.vae, *run.components.text_encoders)]
        )
        return real(run, batch)

    monkeypatch.setattr(loop, "batch_loss", watch)
    path = training.train(config(base=str(bases("sdxl")), steps=1), progress=False)
    assert seen == [[False, True, True, True]]
    files.load(path, models.skeleton(bases("sdxl")))


def test_fp16_steps_that_overflow_lower_the_scale_and_change_nothing(config, running):
    run = running("sd1", config(precision="fp16", steps=3))
    list(loop.steps(run, 1))
    before, scale = [p.detach().clone() for p in run.parameters], run.scaler.get_scale()
    run.parameters[0].register_hook(lambda grad: grad * float("inf"))
    step = next(loop.steps(run, 2))
    assert not np.isfinite(step.grad_norm) and run.scaler.get_scale() == scale / 2
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))


@pytest.mark.parametrize("kind, targets", [("sd2", ("attention", "text_attention")), ("sdxl", (*TEXT, "convolutions"))])
def test_the_trained_adapter_is_the_one_that_stock_diffusers_and_peft_load(config, bases, loaded, tmp_path, kind, targets):
    """U-Net and text encoders say the same with our trained updates on them as stock diffusers with our file (fp32, 1e-4)."""
    import diffusers

    components = loaded(kind)
    path = training.train(config(targets=targets, steps=3, learning_rate=0.05, format="peft"), progress=False, components=components)
    pipe = getattr(diffusers, "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline").from_pretrained(bases(kind))
    pipe.load_lora_weights(path.parent, weight_name=path.name)
    x, t = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1)), torch.tensor([500])
    ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]])

    @torch.no_grad()
    def ours():
        hint = conditioning.encode_text(components, ["picture 0, sks style"])
        return hint, conditioning.predict(components.unet, x, t, hint, ids)

    base = ours()
    with apply.applied(components.modules, [(files.load(path, components.modules), 1.0)], "stacked"):
        hint, said = ours()
    with torch.no_grad():
        context, _, *more = (
            pipe.encode_prompt("picture 0, sks style", "cpu", 1, False)
            if kind == "sd2"
            else pipe.encode_prompt("picture 0, sks style", device="cpu", do_classifier_free_guidance=False)
        )
        added = {"text_embeds": more[0], "time_ids": ids} if more else None
        theirs = pipe.unet(x, t, context, added_cond_kwargs=added).sample
    for mine, other, plain in ((hint.context, context, base[0].context), (said, theirs, base[1])):
        assert (mine - other).abs().max() <= 1e-4 * other.abs().max()
        assert (mine - plain).abs().max() > 1e-2 * plain.abs().max(), "the adapter does change something"
