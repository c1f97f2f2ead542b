"""Optimizers, their rates, averages and norms: their formulas, and exact through an interruption."""

from copy import deepcopy

import pytest
import torch
from trainings import FEW, equal, numbers, saved

from sdlora.errors import SdloraError
from sdlora.training import draws, loop, maxnorm, optimizers
from sdlora.training.ema import Average

pytestmark = pytest.mark.usefixtures("aside")


@pytest.fixture
def quadratic(monkeypatch):
    """A loss without the U-Net: every trained number is drawn to a goal that moves with the step."""

    def loss(run, batch):
        goals = (0.1 * draws.normal(tuple(p.shape), 0, "goal", i, run.step) for i, p in enumerate(run.parameters))
        return sum((p - goal).square().mean() for p, goal in zip(run.parameters, goals, strict=True))

    monkeypatch.setattr(loop, "batch_loss", loss)


VARIANTS = [{"optimizer": {"name": name}} for name in optimizers.KINDS] + [
    {"optimizer": {"name": "adamw8bit"}, "rank": 48},  # its state is in 8 bits only from 4096 numbers on
    {"ema": {"decay": 0.9}},
    {"ema": {"decay": 0.5, "warmup": False}, "max_norm": 0.01},
    {"lora_plus": 16.0, "rates": {"unet.mid": 0.5}, "schedule": "rex"},
    {"optimizer": {"name": "adafactor", "beta1": 0.9, "scale_parameter": True}},
    {"optimizer": {"name": "prodigy", "d_coef": 2.0, "betas": [0.9, 0.99]}},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_run_that_is_saved_and_loaded_goes_on_bit_for_bit(variant, small_training, running, quadratic, tmp_path):
    name = variant.get("optimizer", {}).get("name", "adamw")
    if not optimizers.installed(name):
        pytest.skip(optimizers.missing(name))
    wanted = small_training(**FEW | variant)
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


def test_a_rate_that_is_found_is_told(small_training, running, quadratic):
    pytest.importorskip("prodigyopt")
    run = running(small_training(**FEW, optimizer={"name": "prodigy", "d0": 1e-4}))
    told = [step.learning_rate for step in loop.steps(run)]
    group = run.optimizer.param_groups[0]
    assert told[-1] == pytest.approx(group["lr"] * group["d"]) and group["d"] > 1e-4, "it has grown"


def test_schedule_free_saves_its_average_and_saving_changes_nothing(small_training, running, quadratic):
    pytest.importorskip("schedulefree")
    run = running(small_training(**FEW, optimizer={"name": "schedulefree"}))
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


def test_the_average_is_its_formula_and_is_what_is_saved(small_training, running, quadratic):
    run = running(small_training(**FEW, ema={"decay": 0.6}))
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


def test_lora_plus_and_block_rates_are_groups_of_their_own(small_training, running):
    run = running(small_training(learning_rate=1e-3, lora_plus=16.0, rates={"unet.mid": 0.5}, targets=["attention", "text_attention"]))
    assert sorted(run.rates) == sorted([1e-3, 16e-3, 5e-4, 8e-3, 5e-4, 8e-3])
    rate_of = {id(p): group["lr"] for group in run.optimizer.param_groups for p in group["params"]}
    for name, update in run.carriers.items():
        factor = 0.5 if ".mid_block." in name or name.startswith("text") else 1.0  # text encoders: half the rate
        assert (rate_of[id(update.a)], rate_of[id(update.b)]) == (1e-3 * factor, 16e-3 * factor)
    assert len(rate_of) == len(run.parameters)


def test_no_update_outgrows_the_norm_that_is_asked_for(small_training, running, quadratic):
    run = running(small_training(**FEW, max_norm=0.02, learning_rate=0.1))
    list(loop.steps(run))
    norms = [update.norm for update in run.adapter().layers.values()]
    assert max(norms) == pytest.approx(0.02, rel=1e-5) and all(norm <= 0.02 * (1 + 1e-5) for norm in norms)


def test_max_norm_scales_a_and_b_as_kohya_does(small_training, running):
    run = running(small_training(**FEW))
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


@pytest.mark.parametrize("name", list(optimizers.KINDS))
def test_layers_that_no_gradient_reaches_are_saved_as_they_are(name, small_training, running, tmp_path):
    """With clip_skip = 2 the text encoder's last layer has no part in the loss."""
    if not optimizers.installed(name):
        pytest.skip(optimizers.missing(name))
    wanted = small_training(optimizer={"name": name}, targets=["text_attention"], clip_skip=2, steps=2, batch_size=1)
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


PRODIGY, FREE = {"name": "prodigy"}, {"name": "schedulefree"}


def test_an_optimizer_that_is_not_installed_is_told_with_the_line_that_installs_it(small_training, monkeypatch):
    monkeypatch.setattr(optimizers, "find_spec", lambda module: None)
    with pytest.raises(SdloraError, match="needs a package that is not installed: pip install lion-pytorch"):
        small_training(optimizer={"name": "lion"})
    with pytest.raises(SdloraError, match="pip install prodigyopt"):
        optimizers.build([], "prodigy")


def test_rates_that_are_found_begin_at_1_and_lions_is_smaller(small_training):
    pytest.importorskip("prodigyopt")
    found = small_training(optimizer=PRODIGY).settled()
    assert (found.learning_rate, found.text_learning_rate, found.schedule) == (1.0, 1.0, "cosine")
    assert small_training(optimizer={"name": "lion"}).settled().learning_rate == pytest.approx(4e-4)
    assert small_training(optimizer=FREE).settled().schedule == "constant"


@pytest.mark.parametrize("name", list(optimizers.KINDS))
def test_every_optimizer_learns_a_low_rank_matrix_at_its_default_rate(name, small_training):
    """300 steps with the settings' own warm-up and schedule, A random and B zero, as a training begins."""
    if not optimizers.installed(name):
        pytest.skip(optimizers.missing(name))
    from sdlora.training import schedule

    settled = small_training(optimizer={"name": name}, steps=300, warmup=10).settled()
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
