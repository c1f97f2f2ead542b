"""What a step draws: dropout, noise, timesteps, masks; a function of the step alone; and the loss that explodes."""

import numpy as np
import pytest
import torch
from PIL import Image
from trainings import FEW, equal, numbers

from sdlora import apply, generation, training
from sdlora.data import Cache
from sdlora.errors import SdloraError
from sdlora.training import draws, loop, session
from sdlora.training.batches import batches
from sdlora.training.guard import WINDOW, Guard


@pytest.mark.parametrize(
    "variant",
    [
        {"dropout": {"network": 0.3, "rank": 0.3, "module": 0.3}},
        {"noise": {"pyramid_levels": 4, "input_perturbation": 0.1}, "loss": {"kind": "huber", "weighting": "debiased"}},
        {"noise": {"offset": 0.1, "offset_adaptive": 0.1}, "timesteps": {"distribution": "logit_normal", "min": 50}},
    ],
    ids=str,
)
def test_what_is_drawn_depends_on_the_step_alone(variant, small_training, running, tmp_path):
    wanted = small_training(**FEW | variant | {"steps": 3, "accumulate": 2, "batch_size": 1})
    whole = running(wanted)
    list(loop.steps(whole))
    expected = numbers(whole)
    first = running(wanted)
    list(loop.steps(first, 2))
    first.save_state(tmp_path / "state.pt")
    torch.rand(7)
    second = running(wanted)
    second.load_state(tmp_path / "state.pt")
    list(loop.steps(second))
    assert equal(numbers(second), expected)
    plain = running(small_training(**FEW, steps=3, accumulate=2, batch_size=1))
    list(loop.steps(plain))
    assert not equal(numbers(plain), expected), "the settings do something"


def gate(**chances):
    from sdlora.apply.dropout import Gate

    def source(layer, purpose, where):
        return draws.generator(chances.pop("seed", 0), layer, len(purpose))

    return Gate("layer", chances.get("network", 0.0), chances.get("rank", 0.0), chances.get("module", 0.0), source)


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    h = torch.ones(64, 50, 16)
    network = gate(network=0.25)(h)
    assert network.unique().tolist() == pytest.approx([0, 4 / 3]) and (network == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    rank = gate(rank=0.25)(h)
    assert torch.equal(rank, rank[:, :1].expand_as(rank)), "a rank is dropped for the whole of a sample"
    assert not torch.equal(rank[0], rank[1]) and (rank == 0).float().mean().item() == pytest.approx(0.25, abs=0.04)
    picture = gate(rank=0.25)(torch.ones(64, 16, 5, 5))
    assert torch.equal(picture[..., 0, 0], rank[:, 0]), "a convolution's ranks are its channels"
    kept = [gate(module=0.25, seed=i)(torch.ones(1)).item() for i in range(400)]
    assert set(kept) == {0.0, 1.0} and sum(kept) / 400 == pytest.approx(0.75, abs=0.07), "a layer that stays is not made larger"


def test_dropout_meets_the_same_gate_when_activations_are_computed_twice(small_training, running):
    from sdlora.training import placement

    found = []
    for twice in (False, True):
        run = running(small_training(dropout={"network": 0.2, "rank": 0.2, "module": 0.2}, gradient_checkpointing=twice))
        with torch.no_grad():
            for i, p in enumerate(run.parameters):
                p += 0.05 * draws.normal(tuple(p.shape), 0, "test", i)
        with placement.checkpointing(run.components, run.config), loop.dropout(run, 0):
            loop.batch_loss(run, batches(run.sources, run.config, 0, 1000)[0]).backward()
        found.append(torch.cat([p.grad.flatten() for p in run.parameters]))
        assert all(trained.gate is None for trained in run.carriers.values()), "outside, nothing drops out"
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6 * found[0].abs().max().item())


def test_the_input_has_more_noise_than_the_target_knows_of(small_training, running):
    one, other = (running(small_training(**FEW, noise={"input_perturbation": gamma})) for gamma in (0.1, 0.2))
    first, second = (batches(run.sources, run.config, 0, 1000)[0] for run in (one, other))
    assert torch.equal(first.noise, second.noise)
    torch.testing.assert_close(2 * first.extra, second.extra)
    assert first.extra.std().item() == pytest.approx(0.1, rel=0.1)


def test_timesteps_stay_in_their_range(small_training, running):
    run = running(small_training(**FEW, timesteps={"min": 200, "max": 300}))
    t = torch.cat([b.timesteps for step in range(50) for b in batches(run.sources, run.config, step, 1000)])
    assert t.min() >= 200 and t.max() < 300 and t.max() - t.min() > 90


@pytest.mark.parametrize("beyond", [{"max": 1001}, {"min": 1000}], ids=str)
def test_timesteps_that_the_base_does_not_have_are_refused(small_training, running, beyond):
    with pytest.raises(SdloraError, match="has 1000: min is at most 999, max at most 1000"):
        running(small_training(**FEW, timesteps=beyond))
    running(small_training(**FEW, timesteps={"min": 999, "max": 1000}))


def test_zero_terminal_snr_is_trained_recorded_and_sampled_with(small_training, running, loaded):
    base = loaded("sd2_v")
    run = running(small_training(**FEW, noise={"zero_snr": True}, resolution=64), "sd2_v")
    assert run.components.alphas_bar[-1] == 0 and base.alphas_bar[-1] > 0
    list(loop.steps(run, 1))
    adapter = run.adapter(training.run.metadata(run))
    assert adapter.metadata["ss_zero_terminal_snr"] == "True"
    apply.eject(base.modules)
    levelled = generation.adapters.levelled
    from sdlora.strength import strength

    assert levelled(base, [(adapter, strength(1.0))], {}).alphas_bar[-1] == 0
    assert levelled(base, [(adapter, strength(0.0))], {}) is base, "a strength of 0 is the base"
    request = generation.Request("a cat", seed=1, steps=2, width=64, height=64)
    one, other = (next(iter(generation.generate(base, [request], [(adapter, eta)]))).image for eta in (1e-6, 0.0))
    assert one.tobytes() != other.tobytes(), "the sampler begins at pure noise"


def test_zero_terminal_snr_is_refused_for_a_base_that_predicts_epsilon(small_training, running):
    with pytest.raises(SdloraError, match="predicts ε, which of pure noise says nothing"):
        running(small_training(noise={"zero_snr": True}))


def test_a_heavy_tailed_loss_is_no_explosion_and_a_growing_one_is():
    rng = np.random.default_rng(0)
    guard = Guard(10.0)
    assert all(guard.alarmed(loss) is None for loss in rng.lognormal(-3, 1.2, 3000)), "losses of single samples, apart by factors of 1000"
    twin = Guard(10.0)
    twin.restore(guard.state)
    grown = [(guard.alarmed(loss), twin.alarmed(loss)) for loss in 2 * np.ones(WINDOW)]
    first = next(i for i, (message, _) in enumerate(grown) if message)
    assert first < 0.6 * WINDOW and "the loss explodes: its median over 50 steps is" in grown[first][0]
    assert all(one == other for one, other in grown), "a resumed run judges alike"
    assert all(Guard(0.0).alarmed(loss) is None for loss in [0.1] * 60 + [100.0] * 60)


def test_an_exploding_run_stops_before_the_step_unless_it_is_told_not_to(small_training, running, monkeypatch):
    def loss(run, batch):
        return sum(p.square().sum() for p in run.parameters) * 0 + (0.1 if run.step < WINDOW else 5.0)

    monkeypatch.setattr(loop, "batch_loss", loss)
    run = running(small_training(**FEW, steps=90, batch_size=1))
    with pytest.raises(SdloraError, match=r"the loss explodes: .* in step 75 of 90; try a smaller learning_rate, or explosion=0"):
        list(loop.steps(run))
    assert run.step == 74
    free = running(small_training(**FEW, steps=90, batch_size=1, explosion=0.0))
    assert len(list(loop.steps(free))) == 90


PRODIGY, FREE = {"name": "prodigy"}, {"name": "schedulefree"}


def test_the_mask_of_a_picture_reaches_the_loss(small_training, components, pictures, tmp_path):
    """Half of picture 0 is left out: what the U-Net says there has no part in the loss, or as much as the settings want."""
    import shutil

    from sdlora.loss import target
    from sdlora.training import sources

    shutil.copytree(pictures, tmp_path / "masked")
    half = np.zeros((32, 32), np.uint8)
    half[:, :16] = 255
    Image.fromarray(half).save(tmp_path / "masked" / "0-masklabel.png")

    def batch(**loss):
        wanted = small_training(images=str(tmp_path / "masked"), masks="files", loss=loss, batch_size=3, steps=1, min_snr=0.0)
        fitted = session.fitted(wanted.settled(), components)
        made = sources.made(sources.gathered(fitted), components, fitted, Cache(), tmp_path, None, lambda line: None)
        (found,) = batches(made, fitted, 0, 1000)
        return fitted, found

    def loss_of(fitted, found, spoilt):
        bar = components.alphas_bar[found.timesteps]
        y = target(found.latents, found.noise, bar)
        d = torch.zeros_like(y)
        d[..., spoilt] = 1.0
        return loop.objective(fitted).loss(y + d, y, bar, found.timesteps / 1000, masks=found.masks)

    right, left = slice(4, None), slice(0, 4)  # of eight columns of latents
    fitted, found = batch()
    own = [caption.startswith("picture 0") for caption in found.captions].index(True)
    others = [i for i in range(3) if i != own]
    torch.testing.assert_close(loss_of(fitted, found, right)[own], torch.tensor(0.0))
    torch.testing.assert_close(loss_of(fitted, found, left)[own], torch.tensor(1.0))
    torch.testing.assert_close(loss_of(fitted, found, right)[others], torch.full((2,), 0.5))
    fitted, found = batch(unmasked_weight=0.25)
    torch.testing.assert_close(loss_of(fitted, found, right)[own], torch.tensor(0.2))  # 0.25 / (1 + 0.25)
    fitted, found = batch(unmasked_probability=1.0)
    torch.testing.assert_close(loss_of(fitted, found, right), torch.full((3,), 0.5))
