"""Every formula of docs/losses.md: golden values by hand, and the same in fp64 from its definition."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sdlora.errors import SdloraError
from sdlora.loss import Objective, error, mean_error, noised, target, threshold, weight
from sdlora.loss import noise as shapes
from sdlora.loss.timesteps import placed
from sdlora.schedule import alphas_bar, zero_terminal

BARS = torch.tensor([0.5, 0.9, 0.01], dtype=torch.float64)  # SNR 1, 9, 1/99


def close(found, expected, **kind):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), **({"rtol": 1e-12, "atol": 1e-12} | kind))


@pytest.mark.parametrize(
    ("kind", "c", "golden"),
    [
        ("mse", None, [0.09, 9.0]),
        ("l1", None, [0.3, 3.0]),
        ("huber", (0.4, 4.0), [0.08, 8.0]),  # √(0.3² + 0.4²) = 0.5, √(3² + 4²) = 5
        ("smooth_l1", (0.4, 4.0), [0.2, 2.0]),
    ],
)
def test_the_errors_have_their_golden_values(kind, c, golden):
    d = torch.tensor([[0.3], [-3.0]], dtype=torch.float64)
    close(error(kind, d, None if c is None else torch.tensor(c))[:, 0], golden, rtol=1e-6)


def test_robust_errors_are_square_near_zero_and_straight_far_away():
    c = torch.tensor([0.1], dtype=torch.float64)
    near, far = torch.tensor([[1e-4]], dtype=torch.float64), torch.tensor([[1e4]], dtype=torch.float64)
    close(error("huber", near, c), near.square(), rtol=1e-5)
    close(error("huber", far, c), 2 * 0.1 * far, rtol=1e-4)
    close(error("smooth_l1", near, c), near.square() / 0.1, rtol=1e-5)
    close(error("smooth_l1", far, c), 2 * far, rtol=1e-4)


def test_a_small_robust_error_keeps_its_digits_in_fp32():
    d = torch.tensor([[1e-4]])
    exact = 2 * 0.5 * (math.sqrt(1e-8 + 0.25) - 0.5)
    assert error("huber", d, torch.tensor([0.5])).item() == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
def test_robust_errors_are_those_of_kohyas_formula(kind):
    rng = np.random.default_rng(0)
    d, c = rng.normal(size=(3, 4, 5, 5)), np.array([0.1, 0.5, 1.0])
    wide = c.reshape(3, 1, 1, 1)
    expected = 2 * (wide if kind == "huber" else 1) * (np.sqrt(d**2 + wide**2) - wide)
    close(error(kind, torch.from_numpy(d), torch.from_numpy(c)), expected)


def test_the_thresholds_have_their_golden_values():
    bar, share = torch.tensor([1.0, 0.5, 0.2, 0.0], dtype=torch.float64), torch.tensor([0.0, 0.5, 0.8, 1.0], dtype=torch.float64)
    close(threshold("snr", 0.1, share, bar), [1.0, 0.325, 0.2, 0.1])  # σ = 0, 1, 2, ∞
    close(threshold("exponential", 0.1, share, bar, 2.0), [2 * 10**-s for s in (0, 0.5, 0.8, 1)])
    close(threshold("constant", 0.1, share, bar, 2.0), [0.2] * 4)


@pytest.mark.parametrize(
    ("name", "epsilon", "v"),
    [
        ("none", [1, 1, 1], [1, 1, 1]),
        ("min_snr", [1, 5 / 9, 1], [0.5, 0.5, 0.01]),
        ("debiased", [1, 1 / 3, math.sqrt(99)], [0.5, 0.3, math.sqrt(99) / 100]),
        ("p2", [0.5, 0.1, 0.99], [0.25, 0.09, 0.0099]),
        ("snr_range", [1, 5 / 9, 9.9], [0.5, 0.5, 0.099]),
    ],
)
def test_the_weights_have_their_golden_values(name, epsilon, v):
    close(weight(name, BARS), epsilon)
    close(weight(name, BARS, "v_prediction"), v)


X0 = {  # w(SNR), the weight of the error of x₀, from each paper
    "min_snr": lambda snr: np.minimum(snr, 5.0),
    "debiased": np.sqrt,
    "p2": lambda snr: snr / (1 + snr),
    "snr_range": lambda snr: np.clip(snr, 0.1, 5.0),
}


@pytest.mark.parametrize("name", X0)
def test_a_weighting_weighs_one_estimate_of_the_picture_alike_whether_it_is_said_as_epsilon_or_as_v(name):
    g = torch.Generator().manual_seed(0)
    x, guess, noise = (torch.randn(6, 4, 8, 8, generator=g, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([0, 10, 200, 500, 800, 999])
    bar = alphas_bar().double()[t]
    wide = bar.view(-1, 1, 1, 1)
    noisy = noised(x, noise, bar)
    said = {"epsilon": (noisy - wide.sqrt() * guess) / (1 - wide).sqrt(), "v_prediction": (wide.sqrt() * noisy - guess) / (1 - wide).sqrt()}
    b = bar.numpy()
    expected = X0[name](b / (1 - b)) * ((guess - x).numpy() ** 2).mean((1, 2, 3))
    for prediction, output in said.items():
        found = Objective(weighting=name).loss(output, target(x, noise, bar, prediction), bar, t / 1000, prediction)
        close(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["none", *X0])
def test_the_weights_of_v_are_finite_from_the_picture_to_pure_noise(name):
    values = weight(name, zero_terminal(alphas_bar()), "v_prediction")
    assert torch.isfinite(values).all() and (values >= 0).all()
    assert values[-1] == {"none": 1.0, "snr_range": torch.tensor(0.1)}.get(name, 0.0)


def test_the_whole_loss_is_error_times_weight_with_each_samples_own_threshold():
    g = torch.Generator().manual_seed(0)
    said, wanted = (torch.randn(4, 4, 6, 6, generator=g) for _ in range(2))
    t = torch.tensor([5, 300, 700, 990])
    bar = alphas_bar()[t]
    b, s = bar.double().numpy(), t.numpy() / 1000
    d = (said.double() - wanted.double()).numpy()
    c = np.exp(np.log(0.2) * s).reshape(-1, 1, 1, 1) * 1.5
    expected = 1 / np.sqrt(b / (1 - b)) * (2 * c * (np.sqrt(d**2 + c**2) - c)).mean((1, 2, 3))
    found = Objective("huber", 0.2, "exponential", 1.5, "debiased").loss(said, wanted, bar, t / 1000)
    close(found.double(), expected, rtol=2e-6)


def test_a_mask_weighs_places_and_its_size_does_not_change_the_scale():
    g = torch.Generator().manual_seed(0)
    said, wanted = (torch.randn(3, 4, 6, 6, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(3, 1, 6, 6, generator=g, dtype=torch.float64)
    d, m = (said - wanted).numpy() ** 2, np.broadcast_to(mask.numpy(), (3, 4, 6, 6))
    close(mean_error(said, wanted, weights=mask), [(m[i] * d[i]).sum() / m[i].sum() for i in range(3)])
    close(mean_error(said, wanted, weights=0.01 * mask), mean_error(said, wanted, weights=mask))
    close(mean_error(said, wanted, weights=torch.ones_like(mask)), mean_error(said, wanted))


def test_a_sample_with_an_empty_mask_has_no_loss_and_no_gradient():
    said = torch.ones(1, 4, 2, 2, requires_grad=True)
    loss = mean_error(said, torch.zeros(1, 4, 2, 2), weights=torch.zeros(1, 1, 2, 2))
    loss.sum().backward()
    assert loss.item() == 0 and not said.grad.any()


def test_offset_noise_moves_whole_channels():
    noise, shift = torch.zeros(2, 3, 3, dtype=torch.float64), torch.tensor([[[1.0]], [[-2.0]]], dtype=torch.float64)
    close(shapes.offset(noise, shift, 0.1)[:, 0, 0], [0.1, -0.2])
    latents = torch.tensor([1.0, -4.0, 0.0], dtype=torch.float64).expand(2, 3, 3)  # |mean| 1, as kohya has it; the mean of |x₀| is 5/3
    close(shapes.offset(noise, shift, 0.1, latents, 0.05)[:, 1, 1], [0.15, -0.3])
    close(shapes.offset(noise, shift, 0.1, latents, -0.2)[:, 1, 1], [0.0, 0.0])


def test_the_levels_of_pyramid_noise_shrink_as_their_ratios_say():
    assert shapes.sides(64, 48, [3.0, 2.0, 4.0, 2.0]) == [(64, 48), (32, 24), (4, 3), (8, 6)]
    assert shapes.sides(8, 8, [2.0, 3.0, 3.0, 3.0]) == [(8, 8), (2, 2), (1, 1)], "the first level with a side of 1 is the last"


def test_pyramid_noise_has_unit_variance_and_more_power_in_low_frequencies():
    g = torch.Generator().manual_seed(0)
    white = torch.randn(4, 32, 32, generator=g, dtype=torch.float64)
    levels = [torch.randn(4, *side, generator=g, dtype=torch.float64) for side in shapes.sides(32, 32, [2.0] * 5)]
    found = shapes.pyramid(white, levels, 0.6)
    assert found.std().item() == pytest.approx(1, abs=1e-12)

    def low(x):
        power = np.abs(np.fft.fft2(x.numpy())) ** 2
        return power[:, :3, :3].sum() / power.sum()

    assert low(found) > 2.5 * low(white)
    total = white + levels[0]
    for i, level in enumerate(levels[1:], 1):  # bilinear enlargement by a whole factor, from its definition
        total = total + 0.6**i * torch.from_numpy(np.stack([enlarged(one, 32 // level.shape[1]) for one in level.numpy()]))
    close(found, total / total.std(), rtol=1e-9)


def enlarged(x, k):
    def rows(y):
        at = np.clip((np.arange(len(y) * k) + 0.5) / k - 0.5, 0, len(y) - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, len(y) - 1)
        return y[low] * (1 - at + low)[:, None] + y[high] * (at - low)[:, None]

    return rows(rows(x).T).T


@pytest.mark.parametrize(
    ("settings", "u", "golden"),
    [
        ({}, [0, 0.25, 0.9999], [0, 250, 999]),
        ({"lowest": 200, "highest": 600}, [0, 0.25, 0.9999], [200, 300, 599]),
        ({"distribution": "logit_normal"}, [0, 0.5, stats.norm.cdf(1)], [2, 500, 731]),
        ({"distribution": "logit_normal", "mean": 1.0, "deviation": 2.0}, [0.5, stats.norm.cdf(0.5)], [731, 880]),
        ({"distribution": "cosmap"}, [0.25, 0.5001, 0.75], [292, 500, 707]),
        ({"shift": 3.0}, [0.5001, 0.25], [750, 500]),
    ],
)
def test_the_timesteps_have_their_golden_values(settings, u, golden):
    assert placed(torch.tensor(u, dtype=torch.float64) + 1e-9, 1000, **settings).tolist() == golden


def test_timesteps_follow_their_distribution():
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    found = np.sort((placed(u, 1000, distribution="logit_normal", mean=-0.5, deviation=1.5).numpy() + 0.5) / 1000)
    own = stats.norm.cdf((np.log(found / (1 - found)) + 0.5) / 1.5)
    assert np.abs(own - (np.arange(20000) + 0.5) / 20000).max() < 0.002, "within one of 1000 timesteps"
    density = np.bincount(placed(u, 10, distribution="cosmap").numpy()) / 2000  # 2 / (π (1 − 2t + 2t²)), arXiv:2403.03206, eq. 21
    t = (np.arange(1000) + 0.5) / 1000
    expected = (2 / (math.pi * (1 - 2 * t + 2 * t**2))).reshape(10, 100).mean(1)
    np.testing.assert_allclose(density, expected, atol=0.002)


def test_every_distribution_rises_with_u_so_that_strata_stay_strata():
    u = torch.linspace(0, 1, 501, dtype=torch.float64)[:-1]
    for distribution in ("uniform", "logit_normal", "cosmap"):
        t = placed(u, 1000, 100, 900, distribution, shift=2.0)
        assert (t.diff() >= 0).all() and t.min() >= 100 and t.max() <= 899


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: error("hubber", BARS), "unknown loss 'hubber'; did you mean huber?"),
        (lambda: weight("minsnr", BARS), "unknown weighting 'minsnr'; did you mean min_snr?"),
        (lambda: threshold("snrr", 0.1, BARS, BARS), "did you mean snr?"),
        (lambda: placed(BARS, 1000, distribution="logitnormal"), "did you mean logit_normal?"),
    ],
)
def test_unknown_names_are_told_the_nearest(call, words):
    with pytest.raises(SdloraError) as caught:
        call()
    assert words in str(caught.value)
