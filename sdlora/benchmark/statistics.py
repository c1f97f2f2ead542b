"""Paired timings to a verdict: log ratios, bootstrap interval, equivalence test, and how many more pairs would decide.

One number per block: d = ln(t_condition / t_base). Whatever slows a whole block down cancels in d. All means are means of d, so
the ratio is a geometric mean; no sample is ever dropped. Where steps took turns, d is the mean of the middle half of the steps' own
(`of_steps`): steps of one picture depend on each other, pictures do not, so that a picture counts once, however many steps it has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal["equivalent", "slower", "faster", "inconclusive"]
POWER = 0.9  # the chance with which the recommended number of pairs decides
FEWEST = 6  # blocks that a bootstrap needs: fewer have too few different resamples
MOST_PAIRS = 100_000  # beyond this nobody waits: the estimate is reported as unknown


@dataclass(frozen=True)
class Comparison:
    """A condition against the base. Ratios are times of the condition over times of the base: 1.05 is 5 % slower."""

    pairs: int
    ratio: float  # geometric mean
    low: float  # bootstrap interval of `ratio`
    high: float
    median: float
    median_low: float  # bootstrap interval of `median`
    median_high: float
    spread: float  # standard deviation of ln ratio between the blocks
    equivalence_p: float  # of the two one-sided tests against the margin: the larger of Student's and the bootstrap's
    verdict: Verdict
    more_pairs: int | None  # more blocks for a verdict with 90 % probability; 0 if decided, None if beyond MOST_PAIRS


def compare(
    seconds: Sequence[float], base: Sequence[float], margin: float, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """`seconds[i]` and `base[i]` come from block i. `margin` 0.05: ratios between 1 / 1.05 and 1.05 count as equal.

    ValueError for fewer than two pairs, for unequal lengths and for times that are not positive.
    """
    above, below = np.asarray(seconds, np.float64), np.asarray(base, np.float64)
    if above.shape != below.shape or above.ndim != 1 or len(above) < 2:
        raise ValueError(f"{above.shape} times against {below.shape} of the base: at least two pairs are needed")
    if min(above.min(), below.min()) <= 0:
        raise ValueError("a time is zero or negative")
    return judged(np.log(above / below), margin, confidence, resamples, seed)


def of_steps(seconds: Sequence[float], base: Sequence[float]) -> float:
    """d of a block whose steps took turns: the mean of the middle half of ln(seconds[i] / base[i]) (interquartile mean, midmean).

    A step that the system interrupted, often by a multiple of its own time, is one value at one end; a mean of all would follow it.
    Up to a quarter of the steps may be so at either end. The median bears more, and scatters more: by 15 % for normal noise, by
    20 % over 32 pictures in turns on the embedded base. ValueError for unequal numbers of steps, or none.
    """
    if len(seconds) != len(base) or not len(base):
        raise ValueError(f"{len(seconds)} steps against {len(base)} of the base")
    return float(stats.trim_mean(np.log(np.asarray(seconds, np.float64) / np.asarray(base, np.float64)), 0.25))


def judged(d: np.ndarray, margin: float, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """The comparison from d, one number per block, two or more."""
    rng = np.random.default_rng(seed)
    low, high = mean_interval(d, confidence, resamples, rng)
    median_low, median_high = median_interval(d, confidence, resamples, rng)
    p = max(equivalence_p(d, math.log1p(margin)), bootstrap_equivalence_p(d, math.log1p(margin), resamples, rng))
    verdict = decide(low, high, p, 1 - confidence)
    more = 0 if verdict != "inconclusive" else more_pairs(d, math.log1p(margin), 1 - confidence)
    return Comparison(
        pairs=len(d),
        ratio=math.exp(d.mean()),
        low=math.exp(low),
        high=math.exp(high),
        median=math.exp(float(np.median(d))),
        median_low=math.exp(median_low),
        median_high=math.exp(median_high),
        spread=float(d.std(ddof=1)),
        equivalence_p=p,
        verdict=verdict,
        more_pairs=more,
    )


def mean_interval(d: np.ndarray, confidence: float, resamples: int, rng: np.random.Generator) -> tuple[float, float]:
    """Studentised ("bootstrap-t") interval of the mean over resampled blocks.  Efron and Tibshirani 1993, sec. 12.5.

    Percentile and BCa intervals are too narrow for the ten to thirty blocks of a benchmark; this one keeps its level there.
    For fewer than FEWEST blocks it is Student's interval, which trusts in normal noise.
    """
    n = len(d)
    error = d.std(ddof=1) / math.sqrt(n)
    if error == 0:
        return float(d.mean()), float(d.mean())
    if n < FEWEST:
        low, high = stats.t.interval(confidence, n - 1, d.mean(), error)
        return float(low), float(high)
    below, above = np.quantile(studentised(d, resamples, rng), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(d.mean() - above * error), float(d.mean() - below * error)


def studentised(d: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """t = (mean* − mean) / error* of resampled blocks: what takes the place of Student's distribution."""
    n, error = len(d), d.std(ddof=1) / math.sqrt(len(d))
    drawn = d[rng.integers(n, size=(resamples, n))]
    errors = drawn.std(axis=1, ddof=1) / math.sqrt(n)
    kept = errors > 1e-9 * error  # a resample of one value alone has no t
    return (drawn[kept].mean(axis=1) - d.mean()) / errors[kept]


def median_interval(d: np.ndarray, confidence: float, resamples: int, rng: np.random.Generator) -> tuple[float, float]:
    """Percentile interval of the median over resampled blocks."""
    medians = np.median(d[rng.integers(len(d), size=(resamples, len(d)))], axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def drift(seconds: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """(how much ln ratio changes from the first block to the last, p that it does not): a straight line through all blocks.

    A ratio that drifts has no one value: the machine, or what is measured, changed on the way. (0, 1) for fewer than FEWEST blocks.
    """
    return trend(np.log(np.asarray(seconds, np.float64) / np.asarray(base, np.float64)))


def trend(d: np.ndarray) -> tuple[float, float]:
    """`drift` from d, one number per block."""
    if len(d) < FEWEST or d.std() == 0:
        return 0.0, 1.0
    line = stats.linregress(np.linspace(0, 1, len(d)), d)
    return float(line.slope), float(line.pvalue)


def equivalence_p(d: np.ndarray, margin: float) -> float:
    """Two one-sided t tests of −margin < mean(d) < margin (TOST).  Schuirmann 1987. The p value is the larger of the two."""
    error = d.std(ddof=1) / math.sqrt(len(d))
    if error == 0:
        return 0.0 if abs(d.mean()) < margin else 1.0
    below, above = (d.mean() + margin) / error, (d.mean() - margin) / error
    return float(max(stats.t.sf(below, len(d) - 1), stats.t.cdf(above, len(d) - 1)))


def bootstrap_equivalence_p(d: np.ndarray, margin: float, resamples: int, rng: np.random.Generator) -> float:
    """The same two tests with the studentised bootstrap in place of Student's distribution; 0 for fewer than FEWEST blocks.

    Of noise with a long tail of slow samples Student's test claims too much at the margin: with twelve blocks of exponential
    noise in 14 of 100 cases instead of 5, both together in 9. Either alone may fail, so that both have to agree.
    """
    error = d.std(ddof=1) / math.sqrt(len(d))
    if len(d) < FEWEST or error == 0:
        return 0.0
    t = studentised(d, resamples, rng)
    return float(max((t <= (d.mean() - margin) / error).mean(), (t >= (d.mean() + margin) / error).mean()))


def decide(low: float, high: float, p: float, level: float) -> Verdict:
    """`low`, `high`: interval of the mean of d. A difference that is real but surely within the margin counts as equivalent."""
    if p < level:
        return "equivalent"
    if low > 0:
        return "slower"
    return "faster" if high < 0 else "inconclusive"


def more_pairs(d: np.ndarray, margin: float, level: float) -> int | None:
    """Pairs beyond len(d) with which one of the verdicts comes with probability POWER, if mean and spread are as seen so far."""
    mean, spread = float(d.mean()), float(d.std(ddof=1))
    needed = pairs_needed(mean, spread, margin, level)
    return None if needed is None else max(1, needed - len(d))


def pairs_needed(mean: float, spread: float, margin: float, level: float = 0.05) -> int | None:
    """The least number of pairs at which the test for equivalence or the one for a difference reaches POWER.

    For mean 0 it is about 10.8 (spread / margin)², the textbook value of the TOST.
    """

    def enough(n: int) -> bool:
        return max(equivalence_power(n, mean, spread, margin, level), difference_power(n, mean, spread, level)) >= POWER

    most = 2
    while not enough(most):
        most *= 2
        if most > MOST_PAIRS:
            return None
    least = max(2, most // 2)
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle + 1, most)
    return most


def equivalence_power(n: int, mean: float, spread: float, margin: float, level: float) -> float:
    if spread == 0:
        return float(abs(mean) < margin)
    critical = stats.t.ppf(1 - level, n - 1)
    error = spread / math.sqrt(n)
    up, down = (margin - mean) / error, (margin + mean) / error
    return float(max(0.0, stats.norm.cdf(up - critical) + stats.norm.cdf(down - critical) - 1))


def difference_power(n: int, mean: float, spread: float, level: float) -> float:
    if spread == 0:
        return float(mean != 0)
    shift = abs(mean) / (spread / math.sqrt(n))
    return float(stats.norm.cdf(shift - stats.t.ppf(1 - level / 2, n - 1)))
