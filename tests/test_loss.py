"""The denoising loss against its formulas in fp64."""

import pytest
import torch

from sdlora.loss import Objective, min_snr_weight, noised, squared_error, target
from sdlora.schedule import alphas_bar


def test_the_loss_is_its_formula():
    g = torch.Generator().manual_seed(0)
    predicted, noise = (torch.randn(5, 4, 6, 6, generator=g) for _ in range(2))
    bar = alphas_bar()[[0, 10, 300, 700, 999]]
    b = bar.double()
    snr = b / (1 - b)
    expected = torch.minimum(snr, torch.tensor(5.0)) / snr * ((predicted.double() - noise.double()) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(Objective().loss(predicted, noise, bar, torch.zeros(5)).double(), expected, rtol=1e-5, atol=0)


def test_noising_keeps_unit_variance_and_starts_at_the_picture():
    g = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(3, 4, 32, 32, generator=g) for _ in range(2))
    assert torch.equal(noised(x, noise, torch.ones(3)), x)
    assert torch.equal(noised(x, noise, torch.zeros(3)), noise)
    half = noised(x.double(), noise.double(), torch.full((3,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(half, (x.double() + noise.double()) / 2**0.5)


def test_min_snr_in_its_limits():
    bar = alphas_bar()
    snr = bar / (1 - bar)
    weight = min_snr_weight(bar, 5.0)
    assert torch.equal(weight[snr <= 5], torch.ones_like(weight[snr <= 5])), "noisy samples keep their full weight"
    torch.testing.assert_close(weight[snr > 5] * snr[snr > 5], torch.full_like(weight[snr > 5], 5.0))
    assert torch.equal(min_snr_weight(bar, 1e9), torch.ones_like(bar)), "γ → ∞ is the plain loss"
    assert torch.equal(min_snr_weight(bar, 0.0), torch.ones_like(bar)), "0 is off"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_loss_is_in_fp32_whatever_the_prediction_is_in(dtype):
    assert squared_error(torch.ones(2, 3, dtype=dtype), torch.zeros(2, 3)).dtype == torch.float32


def test_the_target_of_v_is_what_diffusers_trains_on():
    from diffusers import DDPMScheduler

    g = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(5, 4, 8, 8, generator=g) for _ in range(2))
    t = torch.tensor([0, 10, 500, 998, 999])
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").get_velocity(x, noise, t)
    torch.testing.assert_close(target(x, noise, alphas_bar()[t], "v_prediction"), theirs, rtol=1e-6, atol=1e-6)
    assert target(x, noise, alphas_bar()[t]) is noise


@pytest.mark.parametrize("gamma", [1.0, 5.0, 1e9])
def test_min_snr_weighs_an_error_of_the_picture_alike_in_both_forms(gamma):
    """One estimate of x₀, said once as ε and once as v: the same weighted loss, min(SNR, γ) times the error of x₀ (fp64)."""
    g = torch.Generator().manual_seed(0)
    x, guess, noise = (torch.randn(6, 4, 8, 8, generator=g, dtype=torch.float64) for _ in range(3))
    bar = alphas_bar().double()[torch.tensor([0, 10, 200, 500, 800, 999])]
    wide = bar.view(-1, 1, 1, 1)
    noisy = noised(x, noise, bar)
    said = {"epsilon": (noisy - wide.sqrt() * guess) / (1 - wide).sqrt(), "v_prediction": (wide.sqrt() * noisy - guess) / (1 - wide).sqrt()}
    expected = (bar / (1 - bar)).clamp(max=gamma) * (guess - x).square().flatten(1).mean(1)
    for prediction, output in said.items():
        loss = Objective(gamma=gamma).loss(output, target(x, noise, bar, prediction), bar, torch.zeros(6), prediction)
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_min_snr_of_pure_noise_is_finite_in_the_v_form():
    weight = min_snr_weight(torch.tensor([0.0, 0.5]), 5.0, "v_prediction")
    assert torch.equal(weight, torch.tensor([0.0, 0.5]))
    assert torch.equal(min_snr_weight(torch.tensor([0.0]), 0.0, "v_prediction"), torch.ones(1)), "0 is off"
