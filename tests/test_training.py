"""One training step and its draws: laws that hold whatever is trained."""

import math

import pytest
import torch

from sdlora.conditioning import Sizes
from sdlora.data import Encoded
from sdlora.data.encode import Row, View
from sdlora.errors import SdloraError
from sdlora.loss.timesteps import placed
from sdlora.training import batches, draws, loop, run, schedule
from sdlora.training.batches import Source

WHOLE = Sizes((64, 64), (0, 0), (64, 64))


def two_rows(views: int = 1) -> Encoded:
    """Two pictures of one latent, whose mirror image is 1 and they are 0."""
    crop = tuple(View(torch.full((1, 1, 1), float(i)), WHOLE) for i in range(views))
    return Encoded(tuple(Row((crop,), (name,), name) for name in "ab"))


@pytest.fixture
def config(small_training):
    return lambda **changes: small_training(**{"steps": 3, "warmup": 0, "learning_rate": 1e-2} | changes)


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def gradients(r: run.Run) -> torch.Tensor:
    for batch in batches.batches(r.sources, r.config, r.step, 1000):
        loop.batch_loss(r, batch).backward()
    found = flat([p.grad for p in r.parameters])
    r.optimizer.zero_grad()
    return found


def randomise(r: run.Run) -> None:
    with torch.no_grad():
        for i, p in enumerate(r.parameters):
            p += 0.05 * draws.normal(tuple(p.shape), 0, "test", i)


def test_a_draw_depends_on_its_name_alone():
    one = draws.normal((3,), 1, "noise", 7)
    torch.manual_seed(3)
    assert torch.equal(one, draws.normal((3,), 1, "noise", 7))
    others = [draws.normal((3,), *key) for key in ((2, "noise", 7), (1, "flip", 7), (1, "noise", 8))]
    assert not any(torch.equal(one, other) for other in others)


def test_every_epoch_sees_every_image_once_in_a_new_order():
    epochs = [draws.order(7, 0, "order", e).tolist() for e in range(5)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_stratified_timesteps_are_uniform_and_one_to_a_stratum():
    rows = torch.stack([placed(draws.quantiles(8, True, 0, "t", step), 1000) for step in range(400)])
    assert torch.equal(rows.sort(1).values // 125, torch.arange(8).expand(400, 8))
    for t in (rows, torch.stack([placed(draws.quantiles(8, False, 0, "t", step), 1000) for step in range(400)])):
        assert 0 <= t.min() and t.max() <= 999
        assert abs(t.float().mean() - 499.5) < 4 * 288.7 / math.sqrt(3200)
    assert (rows.float().mean(0) - 499.5).abs().max() < 4 * 288.7 / math.sqrt(400), "every place of the batch is uniform as well"


def test_the_learning_rate_warms_up_and_falls_as_asked(config):
    cosine = config(steps=100, warmup=10)
    rates = [schedule.factor(i, cosine) for i in range(100)]
    assert rates[0] == 1 / 11 and rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and 0 < rates[-1] < 0.001
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert [schedule.factor(i, config(steps=100, warmup=0, schedule="constant")) for i in (0, 50, 99)] == [1.0, 1.0, 1.0]


def test_dropped_captions_and_mirrored_views_have_their_share(config):
    data = two_rows(views=2)
    settings = config(caption_dropout=0.25, batch_size=100)
    parts = [batches.batches([Source("images", data, 100, 1.0)], settings, step, 1000)[0] for step in range(10)]
    dropped = sum(caption is None for part in parts for caption in part.captions) / 1000
    mirrored = torch.cat([part.latents for part in parts]).mean().item()
    assert abs(dropped - 0.25) < 0.06 and abs(mirrored - 0.5) < 0.07


def test_accumulated_batches_are_one_large_batch(config, running):
    one = running(config(batch_size=8))
    randomise(one)
    whole = gradients(one)
    parts = running(config(batch_size=4, accumulate=2))
    randomise(parts)
    torch.testing.assert_close(gradients(parts), whole, rtol=1e-4, atol=1e-6 * whole.abs().max().item())


def test_the_gradient_is_the_slope_of_the_loss(config, running):
    r = running(config(batch_size=2))
    randomise(r)
    direction = gradients(r)
    direction /= direction.norm()

    def loss_at(distance: float) -> float:
        offset = 0
        with torch.no_grad():
            for p in r.parameters:
                p += distance * direction[offset : offset + p.numel()].view_as(p)
                offset += p.numel()
            return sum(loop.batch_loss(r, b).item() for b in batches.batches(r.sources, r.config, 0, 1000))

    slope = (gradients(r) @ direction).item()
    h = 2e-2
    measured = (loss_at(h) - loss_at(-2 * h)) / (2 * h)
    assert measured == pytest.approx(slope, rel=0.05)


def test_bf16_gradients_with_the_classic_attention_point_the_same_way(config, running, components):
    from sdlora.training import placement

    r = running(config(batch_size=4))
    randomise(r)
    exact = gradients(r)
    object.__setattr__(r.config, "precision", "bf16")
    with placement.prepared(components, r.config):
        rough = gradients(r)
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=0) > 0.995
    assert (rough.norm() / exact.norm()).item() == pytest.approx(1, abs=0.03)


def test_preparing_for_speed_leaves_no_trace(config, components, predict):
    from sdlora.training import placement

    before = predict(components)
    with placement.prepared(components, config(precision="bf16", vae_tiling=True)):
        assert components.vae.use_tiling
    assert not components.vae.use_tiling
    assert torch.equal(predict(components), before)


def test_only_the_adapter_learns(config, running, components):
    before = {name: value.clone() for name, value in components.unet.state_dict().items()}
    r = running(config())
    start = flat(r.parameters).clone()
    done = list(loop.steps(r))
    assert [s.number for s in done] == [1, 2, 3] and all(s.loss > 0 and s.grad_norm > 0 for s in done)
    assert not torch.equal(flat(r.parameters), start)
    after = components.unet.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_loss_falls_on_a_batch_that_is_repeated(config, running, monkeypatch):
    r = running(config(steps=8, batch_size=2, rank=8, warmup=0, schedule="constant"))
    fixed = batches.batches(r.sources, r.config, 0, 1000)
    monkeypatch.setattr(loop, "batches", lambda *_: fixed)
    losses = [step.loss for step in loop.steps(r)]
    assert losses[-1] < 0.9 * losses[0], losses


def test_clipping_bounds_the_gradient_and_reports_it_unclipped(config, running):
    r = running(config(clip=1e-3, weight_decay=0.0))
    step = next(loop.steps(r))
    assert step.grad_norm > 1e-3


def test_a_trained_text_encoder_gets_gradients_and_its_own_rate(config, running):
    r = running(config(targets=("attention", "text_attention", "text_mlp"), text_learning_rate=1e-3))
    assert list(r.rates) == [1e-2, 1e-3]
    start = [p.detach().clone() for p in r.parameters]
    list(loop.steps(r))
    moved = [not torch.equal(a, b) for a, b in zip(start, r.parameters, strict=True)]
    assert all(moved)
    assert {name.partition(".")[0] for name in r.adapter().layers} == {"unet", "text_encoder"}


def test_embeddings_made_anew_equal_the_cached_ones(components):
    from sdlora.data import Cache
    from sdlora.training import text

    captions = ["a cat", "", None, "a dog, 3d emoji", "a cat"]
    known = [caption for caption in captions if caption is not None]
    anew, kept = text.encoded(known, components)(captions), text.cached(known, components, Cache())(captions)
    torch.testing.assert_close(anew.context, kept.context)


def test_the_prior_weighs_as_much_as_it_should(config):
    data = two_rows()
    parts = batches.batches([Source("images", data, 4, 1.0), Source("prior", data, 2, 0.5)], config(batch_size=4, accumulate=3), 0, 1000)
    weights = torch.stack([part.weights for part in parts])
    assert weights.shape == (3, 6)
    assert weights[:, :4].sum().item() == pytest.approx(1.0) and weights[:, 4:].sum().item() == pytest.approx(0.5)


def test_a_loss_that_is_no_number_stops_before_the_step(config, running):
    r = running(config(steps=5))
    list(loop.steps(r, 2))
    good = flat(r.parameters).clone()
    for row in r.sources[0].data.rows:
        row.views[0][0].latents[:] = float("nan")
    with pytest.raises(SdloraError, match=r"the loss is nan in step 3 of 5 \(learning_rate 0.01.*smaller learning_rate"):
        next(loop.steps(r))
    assert r.step == 2 and torch.equal(flat(r.parameters), good)
