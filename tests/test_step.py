"""What a step is made of: optimizers, averages, dropout, norms, rates, noise; each exact through an interruption, or refused."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image

from sdlora import apply, config, files, generation, training
from sdlora.data import Cache, encode, scan
from sdlora.errors import SdloraError
from sdlora.training import TrainConfig, draws, loop, maxnorm, optimizers, session
from sdlora.training.batches import Source, batches
from sdlora.training.ema import Average
from sdlora.training.guard import WINDOW, Guard

pytestmark = pytest.mark.usefixtures("aside")
FEW = {"include": ("unet.mid",)}  # four attention layers are enough to tell


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}, sks style")
    return folder


@pytest.fixture
def settings(pictures, tmp_path):
    def make(**changes) -> TrainConfig:
        usual = {"steps": 8, "batch_size": 2, "rank": 2, "resolution": 32, "precision": "fp32", "save_every": 0, "warmup": 1}
        return config.validated(TrainConfig, {"images": str(pictures), "output": str(tmp_path / "run")} | usual | changes)

    return make


@pytest.fixture
def running(components, pictures, loaded):
    """A function (settings, kind of base or None for the tiny one) -> a Run in memory; the updates come off afterwards."""
    used = []

    def make(wanted: TrainConfig, kind: str | None = None):
        base = loaded(kind) if kind else components
        apply.eject(base.modules)
        used.append(base)
        base = session.rescaled(base, wanted)
        settled = session.fitted(wanted.settled(), base)
        source = Source("images", encode(scan(pictures), base, settled.resolution, Cache()), settled.batch_size, 1.0)
        return session._run(settled, base, [source], Cache(), {"base model": "b", "images": "i"})

    yield make
    for base in used:
        apply.eject(base.modules)


@pytest.fixture
def quadratic(monkeypatch):
    """A loss without the U-Net: every trained number is drawn to a goal that moves with the step."""

    def loss(run, batch):
        goals = (0.1 * draws.normal(tuple(p.shape), 0, "goal", i, run.step) for i, p in enumerate(run.parameters))
        return sum((p - goal).square().mean() for p, goal in zip(run.parameters, goals, strict=True))

    monkeypatch.setattr(loop, "batch_loss", loss)


def numbers(run) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.parameters]


def saved(run) -> list[torch.Tensor]:
    return [t for update in run.adapter().layers.values() for t in (update.a, update.b)]


def equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


VARIANTS = [{"optimizer": {"name": name}} for name in optimizers.KINDS] + [
    {"optimizer": {"name": "adamw8bit"}, "rank": 48},  # its state is in 8 bits only from 4096 numbers on
    {"ema": {"decay": 0.9}},
    {"ema": {"decay": 0.5, "warmup": False}, "max_norm": 0.01},
    {"lora_plus": 16.0, "rates": {"unet.mid": 0.5}, "schedule": "rex"},
    {"optimizer": {"name": "adafactor", "beta1": 0.9, "scale_parameter": True}},
    {"optimizer": {"name": "prodigy", "d_coef": 2.0, "betas": [0.9, 0.99]}},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_run_that_is_saved_and_loaded_goes_on_bit_for_bit(variant, settings, running, quadratic, tmp_path):
    name = variant.get("optimizer", {}).get("name", "adamw")
    if not optimizers.installed(name):
        pytest.skip(optimizers.missing(name))
    wanted = settings(**FEW | variant)
    whole = running(wanted)
    start = numbers(whole)
    steps = list(loop.steps(whole))
    expected, result = numbers(whole), saved(whole)
    assert not equal(start, expected), "something was learnt"
    first = running(wanted)
    list(loop.steps(first, 3))
    first.save_state(tmp_path / "state.pt")
    first.adapter()
    second = running(wanted)
    second.load_state(tmp_path / "state.pt")
    again = list(loop.steps(second))
    assert [(s.number, s.loss) for s in again] == [(s.number, s.loss) for s in steps[3:]]
    assert equal(numbers(second), expected) and equal(saved(second), result)


@pytest.mark.parametrize(
    "variant",
    [
        {"dropout": {"network": 0.3, "rank": 0.3, "module": 0.3}},
        {"noise": {"pyramid_levels": 4, "input_perturbation": 0.1}, "loss": {"kind": "huber", "weighting": "debiased"}},
        {"noise": {"offset": 0.1, "offset_adaptive": 0.1}, "timesteps": {"distribution": "logit_normal", "min": 50}},
    ],
    ids=str,
)
def test_what_is_drawn_depends_on_the_step_alone(variant, settings, running, tmp_path):
    wanted = settings(**FEW | variant | {"steps": 3, "accumulate": 2, "batch_size": 1})
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
    plain = running(settings(**FEW, steps=3, accumulate=2, batch_size=1))
    list(loop.steps(plain))
    assert not equal(numbers(plain), expected), "the settings do something"


def test_a_rate_that_is_found_is_told(settings, running, quadratic):
    pytest.importorskip("prodigyopt")
    run = running(settings(**FEW, optimizer={"name": "prodigy", "d0": 1e-4}))
    told = [step.learning_rate for step in loop.steps(run)]
    group = run.optimizer.param_groups[0]
    assert told[-1] == pytest.approx(group["lr"] * group["d"]) and group["d"] > 1e-4, "it has grown"


def test_schedule_free_saves_its_average_and_saving_changes_nothing(settings, running, quadratic):
    pytest.importorskip("schedulefree")
    run = running(settings(**FEW, optimizer={"name": "schedulefree"}))
    list(loop.steps(run, 5))
    before = numbers(run)
    found = saved(run)
    assert equal(numbers(run), before), "not by one bit"
    twin = deepcopy(run.optimizer)
    twin.eval()
    theirs = [p for group in twin.param_groups for p in group["params"]]
    for own, expected in zip(found, theirs, strict=True):
        torch.testing.assert_close(own, expected.detach(), rtol=1e-6, atol=1e-8)
    assert not equal(found, before)


def test_the_average_is_its_formula_and_is_what_is_saved(settings, running, quadratic):
    run = running(settings(**FEW, ema={"decay": 0.6}))
    expected = [p.double() for p in numbers(run)]
    for step in loop.steps(run):
        d = min(0.6, (1 + step.number) / (10 + step.number))
        expected = [d * e + (1 - d) * p.double() for e, p in zip(expected, numbers(run), strict=True)]
    assert d == 0.5, "eight steps: still warming up"
    for own, e in zip(saved(run), expected, strict=True):
        torch.testing.assert_close(own.double(), e, rtol=1e-5, atol=1e-7)
    assert Average([torch.zeros(1)], 0.6, False).rate(1) == 0.6 and not equal(saved(run), numbers(run))


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor"])
def test_weight_decay_is_decoupled_and_scaled_by_the_rate(name):
    if not optimizers.installed(name):
        pytest.skip(optimizers.missing(name))
    p = torch.nn.Parameter(torch.full((4, 4), 2.0))
    optimizer = optimizers.build([{"params": [p], "lr": 0.1}], name, 0.5)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((4, 4), 2.0 * (1 - 0.1 * 0.5)))


def test_lion_is_its_formula():
    pytest.importorskip("lion_pytorch")
    g = torch.Generator().manual_seed(0)
    start, grads = torch.randn(5, 5, generator=g), torch.randn(3, 5, 5, generator=g)
    p = torch.nn.Parameter(start.clone())
    optimizer = optimizers.build([{"params": [p], "lr": 0.01}], "lion", 0.1, {"betas": (0.8, 0.95)})
    w, m = start.double(), torch.zeros(5, 5, dtype=torch.float64)
    for grad in grads:
        p.grad = grad.clone()
        optimizer.step()
        w = w - 0.01 * ((0.8 * m + 0.2 * grad).sign() + 0.1 * w)  # arXiv:2302.06675, algorithm 2
        m = 0.95 * m + 0.05 * grad
    torch.testing.assert_close(p.detach().double(), w, rtol=1e-5, atol=1e-6)


def test_lora_plus_and_block_rates_are_groups_of_their_own(settings, running):
    run = running(settings(learning_rate=1e-3, lora_plus=16.0, rates={"unet.mid": 0.5}, targets=["attention", "text_attention"]))
    assert sorted(run.rates) == sorted([1e-3, 16e-3, 5e-4, 8e-3, 5e-4, 8e-3])
    rate_of = {id(p): group["lr"] for group in run.optimizer.param_groups for p in group["params"]}
    for name, update in run.carriers.items():
        factor = 0.5 if ".mid_block." in name or name.startswith("text") else 1.0  # text encoders: half the rate
        assert (rate_of[id(update.a)], rate_of[id(update.b)]) == (1e-3 * factor, 16e-3 * factor)
    assert len(rate_of) == len(run.parameters)


def test_no_update_outgrows_the_norm_that_is_asked_for(settings, running, quadratic):
    run = running(settings(**FEW, max_norm=0.02, learning_rate=0.1))
    list(loop.steps(run))
    norms = [update.norm for update in run.adapter().layers.values()]
    assert max(norms) == pytest.approx(0.02, rel=1e-5) and all(norm <= 0.02 * (1 + 1e-5) for norm in norms)


def test_max_norm_scales_a_and_b_as_kohya_does(settings, running):
    run = running(settings(**FEW))
    (trained, *_) = run.carriers.values()
    with torch.no_grad():
        for p in trained.parameters():
            torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
    a, b = trained.a.detach().double(), trained.b.detach().double()
    norm = (trained.update.scale * b @ a).norm().clamp(min=0.5 / 2)
    ratio = (norm.clamp(max=0.5) / norm).sqrt()  # networks/lora.py, apply_max_norm_regularization
    assert maxnorm.hold([trained], 0.5) == 1 and ratio < 1
    torch.testing.assert_close(trained.a.detach().double(), a * ratio, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(trained.b.detach().double(), b * ratio, rtol=1e-6, atol=1e-8)
    assert maxnorm.hold([trained], 0.51) == 0


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


def test_dropout_meets_the_same_gate_when_activations_are_computed_twice(settings, running):
    from sdlora.training import placement

    found = []
    for twice in (False, True):
        run = running(settings(dropout={"network": 0.2, "rank": 0.2, "module": 0.2}, gradient_checkpointing=twice))
        with torch.no_grad():
            for i, p in enumerate(run.parameters):
                p += 0.05 * draws.normal(tuple(p.shape), 0, "test", i)
        with placement.checkpointing(run.components, run.config), loop.dropout(run, 0):
            loop.batch_loss(run, batches(run.sources, run.config, 0, 1000)[0]).backward()
        found.append(torch.cat([p.grad.flatten() for p in run.parameters]))
        assert all(trained.gate is None for trained in run.carriers.values()), "outside, nothing drops out"
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6 * found[0].abs().max().item())


def test_the_input_has_more_noise_than_the_target_knows_of(settings, running):
    one, other = (running(settings(**FEW, noise={"input_perturbation": gamma})) for gamma in (0.1, 0.2))
    first, second = (batches(run.sources, run.config, 0, 1000)[0] for run in (one, other))
    assert torch.equal(first.noise, second.noise)
    torch.testing.assert_close(2 * first.extra, second.extra)
    assert first.extra.std().item() == pytest.approx(0.1, rel=0.1)


def test_timesteps_stay_in_their_range(settings, running):
    run = running(settings(**FEW, timesteps={"min": 200, "max": 300}))
    t = torch.cat([b.timesteps for step in range(50) for b in batches(run.sources, run.config, step, 1000)])
    assert t.min() >= 200 and t.max() < 300 and t.max() - t.min() > 90


@pytest.mark.parametrize("beyond", [{"max": 1001}, {"min": 1000}], ids=str)
def test_timesteps_that_the_base_does_not_have_are_refused(settings, running, beyond):
    with pytest.raises(SdloraError, match="has 1000: min is at most 999, max at most 1000"):
        running(settings(**FEW, timesteps=beyond))
    running(settings(**FEW, timesteps={"min": 999, "max": 1000}))


@pytest.mark.parametrize("name", list(optimizers.KINDS))
def test_layers_that_no_gradient_reaches_are_saved_as_they_are(name, settings, running, tmp_path):
    """With clip_skip = 2 the text encoder's last layer has no part in the loss."""
    if not optimizers.installed(name):
        pytest.skip(optimizers.missing(name))
    wanted = settings(optimizer={"name": name}, targets=["text_attention"], clip_skip=2, steps=2, batch_size=1)
    run = running(wanted)
    before = numbers(run)
    list(loop.steps(run))
    idle = [torch.equal(one, other) for one, other in zip(before, numbers(run), strict=True)]
    assert sum(idle) == 8 and idle[-8:] == [True] * 8, "A and B of the last layer's q, k, v, out"
    assert equal(saved(run)[-8:], before[-8:])
    run.save_state(tmp_path / "state.pt")
    expected, again = saved(run), running(wanted)
    again.load_state(tmp_path / "state.pt")
    assert equal(saved(again), expected)


def test_zero_terminal_snr_is_trained_recorded_and_sampled_with(settings, running, loaded):
    base = loaded("sd2_v")
    run = running(settings(**FEW, noise={"zero_snr": True}, resolution=64), "sd2_v")
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


def test_zero_terminal_snr_is_refused_for_a_base_that_predicts_epsilon(settings, running):
    with pytest.raises(SdloraError, match="predicts ε, which of pure noise says nothing"):
        running(settings(noise={"zero_snr": True}))


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


def test_an_exploding_run_stops_before_the_step_unless_it_is_told_not_to(settings, running, monkeypatch):
    def loss(run, batch):
        return sum(p.square().sum() for p in run.parameters) * 0 + (0.1 if run.step < WINDOW else 5.0)

    monkeypatch.setattr(loop, "batch_loss", loss)
    run = running(settings(**FEW, steps=90, batch_size=1))
    with pytest.raises(SdloraError, match=r"the loss explodes: .* in step 75 of 90; try a smaller learning_rate, or explosion=0"):
        list(loop.steps(run))
    assert run.step == 74
    free = running(settings(**FEW, steps=90, batch_size=1, explosion=0.0))
    assert len(list(loop.steps(free))) == 90


PRODIGY, FREE = {"name": "prodigy"}, {"name": "schedulefree"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": "lion"}, "it is a table, so write optimizer.NAME=VALUE"),
        ({"optimizer": {"name": "prodgy"}}, "optimizer.name is 'prodgy'; did you mean prodigy?"),
        ({"optimizer": {"name": "lion", "eps": 1e-8}}, "optimizer.eps is no argument of lion; valid: betas"),
        ({"optimizer": {"d0": 1e-5}}, "optimizer.d0 is no argument of adamw"),
        ({"optimizer": {"name": "adafactor", "eps": 1e-8}}, "adafactor has two"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "both have to be at least 0 and less than 1"),
        ({"optimizer": PRODIGY, "learning_rate": 1e-4}, "prodigy finds the rate itself"),
        ({"optimizer": PRODIGY, "lora_plus": 4.0}, "prodigy has one learning rate for all layers"),
        ({"optimizer": PRODIGY, "text_encoder": {"learning_rate": 0.5}, "targets": ["attention", "text_mlp"]}, "has one learning rate"),
        ({"optimizer": FREE, "schedule": "cosine"}, "schedulefree needs no schedule"),
        ({"optimizer": FREE, "schedule_floor": 0.1}, "schedule_floor has no effect with schedulefree"),
        ({"optimizer": FREE | {"betas": [0.0, 0.999]}}, "divides by the first"),
        ({"optimizer": FREE, "ema": {"decay": 0.9}}, "averages the adapter already"),
        ({"optimizer": FREE, "max_norm": 1.0}, "max_norm cannot reach into the average"),
        ({"schedule_cycles": 2}, "schedule_cycles has no effect with schedule=cosine; it belongs to cosine_restarts"),
        ({"schedule": "constant", "schedule_floor": 0.1}, "schedule_floor has no effect with schedule=constant"),
        ({"loss": {"huber_c": 0.1}}, "loss.huber_c has no effect with loss.kind=mse"),
        ({"loss": {"kind": "huber", "huber_scale": 2.0}}, "no effect with loss.huber_schedule=snr"),
        ({"loss": {"weighting": "debiased"}, "min_snr": 5.0}, "two weightings; choose one"),
        ({"loss": {"p2_k": 2.0}}, "loss.p2_k has no effect without loss.weighting=p2"),
        ({"loss": {"weighting": "snr_range", "snr_range": [5.0, 1.0]}}, "two numbers that rise"),
        ({"loss": {"weighting": "p2", "p2_k": 0.0}}, "would be infinite"),
        ({"loss": {"unmasked_weight": 0.5}}, "loss.unmasked_weight has no effect with masks=off"),
        ({"noise": {"offset": 0.1, "pyramid_levels": 6}}, "choose one"),
        ({"noise": {"pyramid_discount": 0.3}}, "no effect without noise.pyramid_levels"),
        ({"noise": {"zero_snr": True}, "prediction": "epsilon"}, "needs a base that predicts v"),
        ({"timesteps": {"min": 500, "max": 400}}, "no timestep is left"),
        ({"timesteps": {"mean": 1.0}}, "timesteps.mean has no effect with timesteps.distribution=uniform"),
        ({"ranks": {"unet.mid": -1}}, "a rank is at least 1"),
        ({"rates": {"unet.mid": 0.0}}, "it has to be more than 0"),
        ({"dropout": {"rank": 0.1}, "compile": True}, "dropout cannot be compiled"),
        ({"explosion": 0.5}, "explosion is 0.5"),
        ({"dropout": {"rank": 1.0}}, "dropout.rank is 1.0"),
        ({"noise": {"ofset": 0.1}}, "noise.ofset"),
    ],
    ids=str,
)
def test_settings_that_contradict_or_do_nothing_are_refused_with_the_reason(settings, changes, words):
    with pytest.raises(SdloraError) as caught:
        settings(**changes)
    assert words in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_is_not_installed_is_told_with_the_line_that_installs_it(settings, monkeypatch):
    monkeypatch.setattr(optimizers, "find_spec", lambda module: None)
    with pytest.raises(SdloraError, match="needs a package that is not installed: pip install lion-pytorch"):
        settings(optimizer={"name": "lion"})
    with pytest.raises(SdloraError, match="pip install prodigyopt"):
        optimizers.build([], "prodigy")


@pytest.mark.parametrize(
    "changes",
    [
        *({"optimizer": {"name": name}} for name in optimizers.KINDS),
        {"loss": {"weighting": "debiased", "kind": "huber"}, "targets": ["attention", "text_mlp"]},
        {"ranks": {"unet.down": 4, "*.attn2.to_q": 0}, "rates": {"b-lora": 0.5}, "alphas": {"unet": 2.0}},
        {"schedule": "wsd", "schedule_decay": 0.1, "ema": {"decay": 0.99}},
    ],
    ids=str,
)
def test_the_settings_a_run_writes_down_are_read_again_as_the_same(settings, changes, tmp_path, monkeypatch):
    monkeypatch.setattr(optimizers, "installed", lambda name: True)
    settled = settings(**changes).settled()
    (tmp_path / "config.toml").write_text(config.dumps(settled))
    again = config.load(TrainConfig, tmp_path / "config.toml")
    assert again == settled and again.settled() == settled


def test_rates_that_are_found_begin_at_1_and_lions_is_smaller(settings):
    pytest.importorskip("prodigyopt")
    found = settings(optimizer=PRODIGY).settled()
    assert (found.learning_rate, found.text_learning_rate, found.schedule) == (1.0, 1.0, "cosine")
    assert settings(optimizer={"name": "lion"}).settled().learning_rate == pytest.approx(4e-4)
    assert settings(optimizer=FREE).settled().schedule == "constant"


def test_the_plan_tells_what_is_not_usual(settings):
    from sdlora.training import words

    usual = settings(warmup=10).settled()
    assert (words.schedule(usual), words.loss(usual)) == ("then a cosine to 0", "Min-SNR 5, stratified timesteps")
    tables = {"noise": {"offset": 0.05}, "timesteps": {"max": 500}, "ema": {"decay": 0.99}, "dropout": {"rank": 0.1}}
    other = settings(**tables, schedule="wsd", loss={"kind": "huber", "weighting": "p2"}, lora_plus=4.0, stratified=False).settled()
    assert words.loss(other) == "P2 huber, timesteps from 0 up to 500, noise offset 0.05"
    ends = "then constant, and over the last 20 % to 0; B 4 times as fast as A; average with decay 0.99; dropout 0 of numbers, "
    assert words.schedule(other) == ends + "0.1 of ranks, 0 of layers"


def test_the_header_says_how_the_step_was_made(settings, running):
    run = running(settings(**FEW, loss={"kind": "huber", "weighting": "debiased"}, noise={"offset": 0.05}, max_norm=1.0))
    head = training.run.metadata(run)
    expected = {"loss_type": "huber", "huber_schedule": "snr", "debiased_estimation": "True", "min_snr_gamma": "None"}
    expected |= {"noise_offset": "0.05", "scale_weight_norms": "1.0", "zero_terminal_snr": "False", "optimizer": "adamw"}
    assert {key: head[f"ss_{key}"] for key in expected} == expected
    assert '"weighting": "debiased"' in head[files.SETTINGS]
    assert math.isfinite(float(head["ss_learning_rate"]))


@pytest.mark.parametrize("name", list(optimizers.KINDS))
def test_every_optimizer_learns_a_low_rank_matrix_at_its_default_rate(name, settings):
    """300 steps with the settings' own warm-up and schedule, A random and B zero, as a training begins."""
    if not optimizers.installed(name):
        pytest.skip(optimizers.missing(name))
    from sdlora.training import schedule

    settled = settings(optimizer={"name": name}, steps=300, warmup=10).settled()
    g = torch.Generator().manual_seed(0)
    goal = torch.randn(24, 2, generator=g) @ torch.randn(2, 24, generator=g) / 24
    a, b = torch.nn.Parameter(torch.randn(2, 24, generator=g) / 2), torch.nn.Parameter(torch.zeros(24, 2))
    optimizer = optimizers.build([{"params": [a, b], "lr": 1.0}], name, settled.weight_decay)
    losses = []
    for step in range(settled.steps):
        optimizer.param_groups[0]["lr"] = settled.rate("unet") * schedule.factor(step, settled)
        loss = (b @ a - goal).square().sum()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0], (losses[0], losses[-1])


def test_the_mask_of_a_picture_reaches_the_loss(settings, components, pictures, tmp_path):
    """Half of picture 0 is left out: what the U-Net says there has no part in the loss, or as much as the settings want."""
    import shutil

    from sdlora.loss import target
    from sdlora.training import sources

    shutil.copytree(pictures, tmp_path / "masked")
    half = np.zeros((32, 32), np.uint8)
    half[:, :16] = 255
    Image.fromarray(half).save(tmp_path / "masked" / "0-masklabel.png")

    def batch(**loss):
        wanted = settings(images=str(tmp_path / "masked"), masks="files", loss=loss, batch_size=3, steps=1, min_snr=0.0)
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
