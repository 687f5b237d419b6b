"""Statistics of gates, audits and reports: intervals, paired tests, rank measures, and what an AUC says in words.

Outcomes are sequences of numbers, mostly 0/1 successes; paired functions take the same episodes
(same task, same seed) in the same order. Every interval is a pair (low, high) at the given level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .numbers import Interval

Doubles = NDArray[np.float64]

FEW = 5
"""With fewer successes or failures than this, how a score tells them apart is not judged."""


@dataclass(frozen=True)
class Grade:
    """How well a score tells success from failure.

    Attributes:
        below: the AUC at which the next grade begins.
        words: what a score of this grade does.
        advice: to whoever would train on it.
    """

    below: float
    words: str
    advice: str

    @property
    def doubtful(self) -> bool:
        """It does not rank successes above failures."""
        return self.below <= 0.6

    @property
    def clear(self) -> bool:
        return self.below == math.inf


GRADES = (
    Grade(0.4, "prefers failures", "do not train on it"),
    Grade(0.6, "cannot tell success from failure", "do not train on it"),
    Grade(0.8, "tells success from failure only roughly", "whoever trains on it needs a gate"),
    Grade(math.inf, "tells success from failure", ""),
)


def grade(auc: float) -> Grade:
    """The grade of an AUC in 0..1."""
    return next(each for each in GRADES if auc < each.below)


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson, 1927; checked against published values).

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n); (0, 1) when nothing was observed.
    """
    if n == 0:
        return 0.0, 1.0
    z, p = _z(0.5 + level / 2), successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of a mean, for a few seeds of one figure; unbounded for fewer than two values."""
    x = _floats(values)
    if len(x) < 2:
        return -math.inf, math.inf
    mean, error = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(len(x))
    half = student_t_quantile(0.5 + level / 2, len(x) - 1) * error
    return mean - half, mean + half


def mean_p(values: ArrayLike) -> float:
    """Two-sided p-value of Student's t test that a mean is 0, such as that of differences over seeds.

    NaN for fewer than two values; without any spread 0, or 1 where the mean is 0.
    """
    x = _floats(values)
    if len(x) < 2:
        return math.nan
    mean, error = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(len(x))
    if error == 0:
        return float(mean == 0)
    return 2 * (1 - _student_t_cdf(abs(mean) / error, len(x) - 1))


def paired_difference_interval(before: ArrayLike, after: ArrayLike, level: float = 0.95) -> Interval:
    """Interval of mean(after - before) on the same episodes.

    0/1 outcomes: square-and-add of the two Wilson intervals with the pairs' continuity-corrected
    correlation (Newcombe, 1998, method 10; checked against published values); it keeps a width when
    no pair differs. Other values: Student's t on the differences.
    """
    x, y = _pair(before, after)
    if not np.isin(np.concatenate([x, y]), (0, 1)).all():
        return mean_interval(y - x, level)
    n, p, q = len(x), float(x.mean()), float(y.mean())
    (p_low, p_high), (q_low, q_high) = wilson(p * n, n, level), wilson(q * n, n, level)
    spread, covariance = math.sqrt(p * (1 - p) * q * (1 - q)), float(np.mean(x * y)) - p * q
    covariance = min(covariance, max(covariance - 1 / (2 * n), 0.0))
    correlation = covariance / spread if spread > 0 else 0.0
    down, up = (q - q_low, p_high - p), (q_high - q, p - p_low)
    low = math.sqrt(max(0.0, down[0] ** 2 - 2 * correlation * down[0] * down[1] + down[1] ** 2))
    high = math.sqrt(max(0.0, up[0] ** 2 - 2 * correlation * up[0] * up[1] + up[1] ** 2))
    return q - p - low, q - p + high


def mean_of_intervals(estimates: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Interval of the unweighted mean of independent estimates, from an interval of each.

    Square-and-add (MOVER; Zou and Donner, 2008, not checked): the distance from each estimate to its
    own limit plays the part of a standard error on that side.
    """
    k, mean = len(estimates), sum(estimates) / len(estimates)
    down = math.hypot(*(estimate - low for estimate, (low, _) in zip(estimates, intervals, strict=True)))
    up = math.hypot(*(high - estimate for estimate, (_, high) in zip(estimates, intervals, strict=True)))
    return mean - down / k, mean + up / k


Alternative = Literal["two-sided", "worse", "better"]


def mcnemar_exact(losses: int, gains: int, alternative: Alternative = "two-sided") -> float:
    """Exact McNemar test of paired 0/1 outcomes; only pairs that changed count.

    Args:
        losses: pairs that succeeded before and fail after.
        gains: pairs that failed before and succeed after.
        alternative: "worse" asks whether losses outnumber gains, "better" the opposite.

    Returns:
        The p-value: a binomial tail at 1/2, doubled and capped at 1 when two-sided.
    """
    n = losses + gains
    worse = sum(math.comb(n, k) for k in range(losses, n + 1)) / (1 << n)
    better = sum(math.comb(n, k) for k in range(gains, n + 1)) / (1 << n)
    if alternative == "two-sided":
        return min(1.0, 2 * min(worse, better))
    return worse if alternative == "worse" else better


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values for as many tests, in the order given (Holm, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def holm_levels(p_values: Sequence[float], alpha: float = 0.05) -> list[float]:
    """The confidence level at which Holm's step-down tests each of so many, in the order given.

    1 - alpha/m for the smallest p-value of m, 1 - alpha/(m-1) for the next, and so on up to the first that is not
    rejected, whose level those behind it share. So an interval at this level excludes the null exactly where ``holm``
    is at most alpha; that all of them cover at once is not claimed.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    levels, stopped = [0.0] * len(p_values), 0
    for rank, i in enumerate(order):
        tests = stopped or len(p_values) - rank
        levels[i] = 1 - alpha / tests
        if not p_values[i] <= alpha / tests:
            stopped = tests
    return levels


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """P(score of a success > score of a failure), ties ½; NaN when only one class is there."""
    x, y = _pair(scores, labels)
    positive = y > 0
    n, m = int(positive.sum()), int((~positive).sum())
    if n * m == 0:
        return math.nan
    return float((_ranks(x)[positive].sum() - n * (n + 1) / 2) / (n * m))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation with mid-ranks for ties; NaN when either side is constant."""
    a, b = (_ranks(values) for values in _pair(x, y))
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan


@dataclass(frozen=True)
class NonInferiority:
    """The outcome of a non-inferiority test.

    Attributes:
        difference: mean failure of the new policy minus that of the base.
        upper: one-sided upper confidence bound of the difference.
        passed: the bound is below the margin, so the new policy is not worse by that much.
    """

    difference: float
    upper: float
    passed: bool


def non_inferiority(fail_new: ArrayLike, fail_base: ArrayLike, margin: float, level: float = 0.99) -> NonInferiority:
    """Is the new policy no worse than the base by ``margin``, on the same items and seeds?

    d̂ = mean(fail_new - fail_base), se² = (mean (fail_new - fail_base)² - d̂²)/n, and the test passes when
    d̂ + z·se < margin. For 0/1 failures the mean square is the discordance rate. Without any
    discordance the bound is d̂ itself. An unchanged policy passes with probability p if there are about
    (z_level + z_p)² · discordance / margin² probes.

    Args:
        fail_new, fail_base: paired failures 0/1, or any cost where lower is better (a negated score).
        margin: the largest loss that is accepted, in the same unit.
        level: one-sided confidence, such as 0.99.
    """
    base, new = _pair(fail_base, fail_new)
    change = new - base
    difference = float(change.mean())
    upper = difference + _z(level) * math.sqrt(max(0.0, float((change**2).mean()) - difference**2) / len(change))
    return NonInferiority(difference, upper, upper < margin)


def student_t_quantile(p: float, degrees: int) -> float:
    """The p-quantile of Student's t, by bisection of its distribution function."""
    if p < 0.5:
        return -student_t_quantile(1 - p, degrees)
    low, high = 0.0, 1.0
    while _student_t_cdf(high, degrees) < p:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _student_t_cdf(middle, degrees) < p else (low, middle)
    return high


def _student_t_cdf(t: float, degrees: int) -> float:
    """P(T ≤ t) for t ≥ 0 by the finite trigonometric series (Abramowitz and Stegun 26.7.3-4; tables checked)."""
    angle = math.atan2(t, math.sqrt(degrees))
    cos2 = math.cos(angle) ** 2
    odd = degrees % 2
    term, total = 1.0, 1.0 if degrees > 1 else 0.0
    for k in range(1 + odd, degrees - 2, 2):
        term *= k / (k + 1) * cos2
        total += term
    series = math.sin(angle) * total
    inside = 2 / math.pi * (angle + math.cos(angle) * series) if odd else series
    return 0.5 + inside / 2


def _z(p: float) -> float:
    return NormalDist().inv_cdf(p)


def _floats(values: ArrayLike) -> Doubles:
    return np.asarray(values, dtype=np.float64)


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[Doubles, Doubles]:
    a, b = _floats(x), _floats(y)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"paired values need two flat sequences of one length, got shapes {a.shape} and {b.shape}")
    return a, b


def _ranks(values: Doubles) -> Doubles:
    """Ranks from 1, ties share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)
