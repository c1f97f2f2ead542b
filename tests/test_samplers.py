"""Laws of every sampler: where it begins and ends, its order, its noise, and what it tells the network."""

import math

import pytest
import torch
from walks import BAR, SHAPE, Draws, begin, denoise

from sdlora.generation import noise as noises
from sdlora.generation.sampler import beginning, sample
from sdlora.generation.samplers import SAMPLERS, method
from sdlora.generation.schedules import schedule


@pytest.mark.parametrize("name", ["DDIM", "UniPC"])
@pytest.mark.parametrize("levels", ["uniform", "karras", "exponential"])
def test_where_the_schedule_has_the_lowest_level_itself_they_go_on_to_the_estimate(name: str, levels: str):
    target, chosen = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)), schedule(levels, BAR, 5)
    x = sample(method(name, levels), lambda x, sigma, t: target, begin(chosen.sigmas), chosen, Draws(torch.float32))
    assert torch.equal(x, target)


@pytest.mark.parametrize("name", ["DDIM", "UniPC", "Euler"])
def test_a_picture_from_noise_begins_with_variance_one_in_the_samplers_own_way(name: str):
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    assert torch.equal(beginning(method(name), noise, 3.0), noise * (3.0 if name == "Euler" else 10**0.5))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_a_perfect_denoiser_of_one_picture_ends_on_it(name: str, steps: int):
    target = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    sigmas = schedule(SAMPLERS[name].schedule, BAR, steps, SAMPLERS[name].discard).sigmas
    *_, (x, estimate) = SAMPLERS[name].run(lambda x, sigma: target, begin(sigmas), sigmas.tolist(), Draws(torch.float32))
    torch.testing.assert_close(x, target, rtol=0, atol=2e-5)
    assert torch.equal(estimate, target)


ORDERS = {
    "Euler": 1,
    "DDIM": 1,
    "Heun": 2,
    "DPM2": 2,
    "DPM++ 2M": 2,
    "DPM++ 2S a": 2,
    "LMS": 2,
    "UniPC": 2,
}  # these two begin with lower orders


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_without_noise_the_error_falls_with_the_order_of_the_method(name: str, order: int):
    """For data N(0, 1), D(x; σ) = x / (1 + σ²), and the flow takes x(σ) to x · √((1 + σ'²) / (1 + σ²))."""
    options = {"eta": 0.0} if "eta" in SAMPLERS[name].options else {}

    def miss(steps: int) -> float:  # from σ = 5 to 1, evenly in ln σ: a sampler's step to 0 is of first order
        sigmas = torch.linspace(math.log(5), 0, steps + 1, dtype=torch.float64).exp().tolist()
        walk = SAMPLERS[name].run(
            lambda x, sigma: x / (1 + sigma**2), torch.ones(1, dtype=torch.float64), sigmas, Draws(torch.float64), **options
        )
        *_, (x, _) = walk
        return abs(x.item() - (2 / 26) ** 0.5)

    assert math.log2(miss(40) / miss(80)) > order - 0.35


@pytest.mark.parametrize("name", [n for n in SAMPLERS if "eta" in SAMPLERS[n].options])
def test_noise_on_the_way_keeps_the_distribution(name: str):
    """Data N(0, 1) with the exact denoiser: many samples have variance 1 again, whatever η."""
    sigmas = schedule("karras", BAR, 100).sigmas.tolist()
    streams = noises.streams([4], (20_000,))
    path = noises.between([4], (20_000,), sigmas)
    fresh = path if SAMPLERS[name].brownian else lambda *_: noises.drawn(streams)
    for eta in (0.0, 1.0):
        *_, (x, _) = SAMPLERS[name].run(lambda x, sigma: x / (1 + sigma**2), noises.drawn(streams) * sigmas[0], sigmas, fresh, eta=eta)
        assert x.var().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("source", noises.SOURCES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_does_not_depend_on_its_batch(name: str, source: str):
    """With the very noise that generate() gives: row i of a batch is, bit for bit, the picture of its seed alone."""
    row, seeds = SAMPLERS[name], [5, 1, 9]
    options = {"s_churn": 5.0} if "s_churn" in row.options else {"eta": 0.7} if "eta" in row.options else {}

    def walk(seeds: list[int]) -> torch.Tensor:
        levels = schedule(row.schedule, BAR, 4, row.discard)
        sigmas, streams = levels.sigmas.tolist(), noises.streams(seeds, SHAPE[1:], source)
        x = noises.drawn(streams) * sigmas[0]
        fresh = noises.between(seeds, SHAPE[1:], sigmas, source) if row.brownian else lambda *_: noises.drawn(streams)
        *_, (x, _) = row.run(denoise, x, sigmas, fresh, **options)
        return x

    together = walk(seeds)
    for i, seed in enumerate(seeds):
        assert torch.equal(walk([seed])[0], together[i])


def test_the_network_is_told_the_schedules_own_timesteps_and_interpolated_ones_between():
    levels, seen = schedule("uniform", BAR, 4), []

    def ask(x: torch.Tensor, sigma: float, t: float) -> torch.Tensor:
        seen.append(t)
        return x

    sample(method("Heun", "uniform"), ask, torch.zeros(SHAPE), levels, Draws(torch.float32))
    assert seen == [999.0, 666.0, 666.0, 333.0, 333.0, 0.0, 0.0]
    seen.clear()
    sample(method("DPM2", "uniform"), ask, torch.zeros(SHAPE), levels, Draws(torch.float32))
    assert seen[::2] == [999.0, 666.0, 333.0, 0.0] and 666 < seen[1] < 999 and seen[1] != int(seen[1])
