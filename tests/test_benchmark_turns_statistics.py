"""What is made of the times of steps that took turns: intervals that cover, and claims that hold, by simulation."""

import math

import numpy as np
import pytest

from sdlora.benchmark import statistics


def taken(rng, ratio, blocks, steps=19, lasting=0.003):
    """d of every block, by its steps and by sums: a machine whose speed wanders, with interruptions of a heavy tail.

    Speed is autocorrelated from turn to turn (0.95) and differs between blocks; every step has noise of its own of 2 %; one in twenty
    is interrupted, for a share of itself of Pareto's distribution with index 1.5, whose variance is infinite. `lasting`: what sets the
    two drawings of one block apart throughout it.
    """
    speed = np.zeros((blocks, 2 * steps))
    speed[:, 0] = rng.normal(0, 0.03, blocks)
    for i in range(1, 2 * steps):
        speed[:, i] = 0.95 * speed[:, i - 1] + rng.normal(0, 0.01, blocks)
    noise = np.exp(rng.normal(0, 0.02, speed.shape)) * (1 + rng.pareto(1.5, speed.shape) * (rng.random(speed.shape) < 0.05))
    times = 0.02 * np.exp(rng.normal(0, 0.2, (blocks, 1)) + speed) * noise
    own, base = times[:, ::2] * ratio * np.exp(rng.normal(0, lasting, (blocks, 1))), times[:, 1::2]
    return np.array([statistics.of_steps(*pair) for pair in zip(own, base, strict=True)]), np.log(own.sum(1) / base.sum(1))


def test_of_steps_that_wander_and_are_interrupted_the_interval_covers_and_equivalence_is_not_claimed_too_often():
    rng, trials = np.random.default_rng(21), 300
    found = [statistics.judged(taken(rng, 1.01, 12)[0], 0.01, resamples=400, seed=i) for i in range(trials)]
    covered, claimed = np.mean([c.low <= 1.01 <= c.high for c in found]), np.mean([c.verdict == "equivalent" for c in found])
    assert covered >= 0.95 - 2.6 * math.sqrt(0.05 * 0.95 / trials)  # what so many trials leave open
    assert claimed <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / trials)


def test_pictures_count_once_each_for_steps_of_one_picture_depend_on_each_other():
    """Taken for 12 × 19 independent pairs the same times leave the truth out far more often than they say."""
    rng, wrong, right = np.random.default_rng(22), [], []
    for _ in range(200):
        d = rng.normal(0, 0.005, (12, 1)) + rng.normal(0, 0.005, (12, 19))
        for values, found in ((d.ravel(), wrong), ([statistics.of_steps(np.exp(row), np.ones(19)) for row in d], right)):
            low, high = statistics.mean_interval(np.asarray(values), 0.95, 300, rng)
            found.append(low <= 0 <= high)
    assert np.mean(wrong) < 0.75 and np.mean(right) > 0.90


def test_twenty_four_pictures_in_turns_prove_one_per_cent_where_their_sums_do_not():
    rng = np.random.default_rng(23)
    both = [[statistics.judged(d, 0.01, resamples=400) for d in taken(rng, 1.0, 24)] for _ in range(30)]
    by_steps, by_sums = ([c.verdict for c in found].count("equivalent") for found in zip(*both, strict=True))
    assert by_steps >= 24 and by_sums <= 6


def test_interrupted_steps_do_not_move_their_block():
    base = np.full(19, 0.02)
    own = base * 1.03
    own[[2, 7, 11]] *= 50
    base[4] *= 9
    assert statistics.of_steps(own, base) == pytest.approx(math.log(1.03))
    with pytest.raises(ValueError, match="19 steps against 18"):
        statistics.of_steps(own, base[1:])
