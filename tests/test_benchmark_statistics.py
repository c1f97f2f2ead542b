"""The benchmark's statistics: intervals that cover, tests that keep their level, estimates that come true."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from sdlora.benchmark import plan, report, statistics


def times(rng: np.random.Generator, n: int, ratio: float = 1.0, spread: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that share the drift of the machine (±20 %) and differ by `ratio` and a lognormal noise."""
    drift = np.exp(rng.normal(0, 0.2, n))
    return 0.7 * drift * ratio * np.exp(rng.normal(0, spread, n)), 0.7 * drift


def compared(seed: int, n: int, ratio: float, margin: float = 0.02, spread: float = 0.01) -> statistics.Comparison:
    return statistics.compare(*times(np.random.default_rng(seed), n, ratio, spread), margin, resamples=1000)


@pytest.mark.parametrize("noise", ["normal", "skewed"])
@pytest.mark.parametrize("n", [3, 8, 16])
def test_the_bootstrap_interval_covers_the_true_ratio_as_often_as_it_says(noise, n):
    rng, hits, trials = np.random.default_rng(5), 0, 600
    for _ in range(trials):
        d = rng.normal(0.03, 0.02, n) if noise == "normal" else 0.03 + 0.02 * (rng.gamma(4.0, 0.5, n) - 2)
        low, high = statistics.mean_interval(d, 0.95, 600, rng)
        hits += low <= 0.03 <= high
    assert 0.92 <= hits / trials <= 0.985  # 0.95 ± what 600 trials and the skew leave open


def test_the_interval_agrees_with_students_t_where_that_is_exact():
    d = np.random.default_rng(1).normal(0.01, 0.02, 60)
    expected = stats.t.interval(0.95, 59, d.mean(), stats.sem(d))
    assert statistics.mean_interval(d, 0.95, 20_000, np.random.default_rng(2)) == pytest.approx(expected, abs=6e-4)


def test_the_interval_of_the_median_is_scipys_percentile_bootstrap():
    d = np.random.default_rng(11).gamma(2.0, 0.01, 15)
    expected = stats.bootstrap((d,), np.median, method="percentile", n_resamples=20_000, random_state=np.random.default_rng(1))
    found = statistics.median_interval(d, 0.95, 20_000, np.random.default_rng(2))
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=1e-3)


def test_the_studentised_interval_covers_skewed_noise_more_often_than_scipys_bca():
    rng, hits, theirs, trials = np.random.default_rng(12), 0, 0, 300
    for _ in range(trials):
        d = 0.02 * (rng.gamma(1.0, 1.0, 10) - 1)
        low, high = statistics.mean_interval(d, 0.95, 500, rng)
        bca = stats.bootstrap((d,), np.mean, method="BCa", n_resamples=500, random_state=rng).confidence_interval
        hits, theirs = hits + (low <= 0 <= high), theirs + (bca.low <= 0 <= bca.high)
    assert theirs / trials < 0.92 <= hits / trials


def test_a_drift_is_a_straight_lines_slope_and_its_p_value():
    rng = np.random.default_rng(13)
    base = np.exp(rng.normal(0, 0.1, 30))
    noise = rng.normal(0, 0.01, 30)
    slope, p = statistics.drift(base * np.exp(0.1 * np.linspace(0, 1, 30) + noise), base)
    assert slope == pytest.approx(0.1, abs=0.02) and p < 1e-6
    claims = [statistics.drift(np.exp(rng.normal(0, 0.01, 12)), np.ones(12))[1] < 0.05 for _ in range(400)]
    assert np.mean(claims) == pytest.approx(0.05, abs=0.03)
    assert statistics.drift([1.0, 2.0], [1.0, 1.0]) == (0.0, 1.0)


def test_the_equivalence_test_is_two_one_sided_t_tests():
    d = np.random.default_rng(3).normal(0.004, 0.01, 15)
    above = stats.ttest_1samp(d, -0.02, alternative="greater").pvalue
    below = stats.ttest_1samp(d, 0.02, alternative="less").pvalue
    assert statistics.equivalence_p(d, 0.02) == pytest.approx(max(above, below), rel=1e-9)


def test_at_the_margin_equivalence_is_claimed_no_oftener_than_the_level():
    rng = np.random.default_rng(4)
    claims = [statistics.equivalence_p(rng.normal(0.02, 0.01, 12), 0.02) < 0.05 for _ in range(1500)]
    assert np.mean(claims) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(("noise", "most"), [("normal", 0.05), ("skewed", 0.07)])
def test_whole_comparisons_at_the_margin_claim_equivalence_and_leave_out_the_truth_no_oftener_than_they_say(noise, most):
    rng, found = np.random.default_rng(14), []
    for seed in range(300):
        base = np.exp(rng.normal(0, 0.2, 12))
        error = rng.normal(0, 0.02, 12) if noise == "normal" else 0.02 * (rng.gamma(4.0, 0.5, 12) - 2)
        found.append(statistics.compare(1.02 * base * np.exp(error), base, 0.02, resamples=500, seed=seed))
    claimed, covered = (
        np.mean(outcomes) for outcomes in ([c.verdict == "equivalent" for c in found], [c.low <= 1.02 <= c.high for c in found])
    )
    assert claimed <= most + 2.3 * math.sqrt(most / 300)  # what 300 trials leave open
    assert covered >= 0.95 - 2.3 * math.sqrt(0.05 / 300)


def test_the_bootstraps_equivalence_test_agrees_with_students_for_normal_noise():
    d = np.random.default_rng(15).normal(0.004, 0.01, 60)
    found = statistics.bootstrap_equivalence_p(d, 0.006, 20_000, np.random.default_rng(3))
    assert found == pytest.approx(statistics.equivalence_p(d, 0.006), abs=0.01) and found > 0.03


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0, "equivalent"), (1.05, "slower"), (1 / 1.05, "faster")])
def test_the_verdict_is_right_when_the_pairs_suffice(ratio, verdict):
    found = [compared(seed, 20, ratio) for seed in range(60)]
    assert sum(c.verdict == verdict for c in found) >= 57
    assert all(c.more_pairs == 0 for c in found if c.verdict == verdict)


def test_without_a_difference_a_verdict_of_one_comes_no_oftener_than_the_level():
    found = [compared(seed, 12, 1.0, margin=0.002).verdict for seed in range(250)]  # so small a margin that equivalence is out of reach
    assert sum(verdict in ("slower", "faster") for verdict in found) / 250 <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 250)
    assert {"slower", "faster"} <= set(found)  # on both sides: the level is used


def test_a_real_difference_inside_the_margin_is_equivalent():
    found = compared(0, 40, 1.01, margin=0.05, spread=0.005)
    assert found.low > 1 and found.verdict == "equivalent"


def test_noise_beyond_the_margin_is_inconclusive_and_says_how_many_pairs_decide():
    found = [compared(seed, 6, 1.0, margin=0.02, spread=0.05) for seed in range(30)]
    assert sum(c.verdict == "inconclusive" for c in found) >= 25
    assert all(c.more_pairs is None or c.more_pairs >= 1 for c in found if c.verdict == "inconclusive")


def test_without_a_difference_the_pairs_needed_are_the_textbook_value():
    factor = (stats.norm.ppf(0.95) * 2) ** 2
    assert factor == pytest.approx(10.82, abs=0.01)
    assert statistics.pairs_needed(0.0, 0.05, 0.02) == pytest.approx(factor * (0.05 / 0.02) ** 2, abs=3)


@pytest.mark.parametrize("mean", [0.0, 0.01, 0.04])
def test_with_the_pairs_needed_nine_runs_in_ten_are_decided(mean):
    n = statistics.pairs_needed(mean, 0.03, 0.02)
    assert n is not None
    rng, decided = np.random.default_rng(6), 0
    for _ in range(400):
        d = rng.normal(mean, 0.03, n)
        low, high = stats.t.interval(0.95, n - 1, d.mean(), stats.sem(d))
        decided += statistics.decide(low, high, statistics.equivalence_p(d, 0.02), 0.05) != "inconclusive"
    assert decided / 400 >= 0.86


def test_a_mean_at_the_margin_needs_the_pairs_that_show_the_difference():
    n = statistics.pairs_needed(0.02, 0.01, 0.02)
    assert n is not None and statistics.difference_power(n, 0.02, 0.01, 0.05) >= 0.9 > statistics.difference_power(n - 1, 0.02, 0.01, 0.05)


def test_drift_that_both_conditions_share_cancels():
    above, below = times(np.random.default_rng(7), 12, 1.1, spread=0.0)
    found = statistics.compare(above, below, 0.02)
    assert found.ratio == pytest.approx(1.1) and found.high - found.low < 1e-6 and found.verdict == "slower"


def test_one_outlier_moves_the_mean_and_not_the_median():
    base = np.ones(15)
    slow = np.r_[np.full(14, 1.01), 3.0] * np.exp(np.random.default_rng(8).normal(0, 0.001, 15))
    found = statistics.compare(slow, base, 0.02)
    assert found.ratio > 1.07 and found.median == pytest.approx(1.01, abs=0.002) and found.verdict == "inconclusive"


def test_the_same_samples_and_seed_give_the_same_analysis():
    pairs = times(np.random.default_rng(9), 10)
    assert statistics.compare(*pairs, 0.02, seed=1) == statistics.compare(*pairs, 0.02, seed=1)


@pytest.mark.parametrize(("above", "below"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 0.0], [1.0, 1.0])])
def test_times_that_cannot_be_compared_are_refused(above, below):
    with pytest.raises(ValueError, match="pairs|zero"):
        statistics.compare(above, below, 0.02)


def test_identical_times_are_equivalent_with_an_interval_of_no_width():
    found = statistics.compare([0.5] * 4, [0.5] * 4, 0.02)
    assert (found.low, found.ratio, found.high, found.verdict) == (1, 1, 1, "equivalent") and math.isfinite(found.median_low)


CONDITIONS = ("base", "base again", "stacked", "fused")


def test_each_condition_takes_each_place_once_and_follows_each_other_once_per_square():
    planned = plan.blocks(20, ["a", "b"], [1], CONDITIONS, seed=3)
    for start in range(0, 20, 4):
        orders = [block.order for block in planned[start : start + 4]]
        assert all({order[place] for order in orders} == set(CONDITIONS) for place in range(4))
        assert len({pair for order in orders for pair in zip(order, order[1:], strict=False)}) == 12


def test_an_odd_number_of_conditions_is_balanced_for_place():
    orders = plan.square(("a", "b", "c", "d", "e"), np.random.default_rng(0))
    assert all(len({order[place] for order in orders}) == 5 for place in range(5))
    assert all(len(set(order)) == 5 for order in orders)


def test_the_order_is_random_and_a_function_of_the_seed():
    orders = {seed: tuple(b.order for b in plan.blocks(24, ["a"], [1], CONDITIONS, seed)) for seed in range(5)}
    assert len(set(orders.values())) == 5
    assert orders[2] == tuple(b.order for b in plan.blocks(24, ["a"], [1], CONDITIONS, 2))
    assert len(set(orders[0])) >= 8  # of 24 possible ones


def test_prompts_and_seeds_come_round_in_turn():
    planned = plan.blocks(8, ["a", "b"], [1, 2], CONDITIONS, seed=0)
    assert [(b.prompt, b.seed) for b in planned] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)] * 2


def test_the_report_says_ours_against_stock_diffusers_in_images_per_second():
    ours = SimpleNamespace(ratio=0.8, low=0.75, high=1.0)
    pairs = [SimpleNamespace(condition="stacked", against="PEFT", comparison=ours)]
    assert report.speed_line(SimpleNamespace(pairs=pairs)) == ""
    pairs.append(SimpleNamespace(condition="base", against="diffusers", comparison=ours))
    assert "1.25 times (1.00 … 1.33) as many images per second" in report.speed_line(SimpleNamespace(pairs=pairs))
