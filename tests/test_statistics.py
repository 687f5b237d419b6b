"""Statistics against numbers computed by hand, published examples and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autotelic import statistics as st


def test_wilson_against_published_values() -> None:
    assert st.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe (1998), table I
    assert st.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert st.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert st.wilson(29, 29)[0] == pytest.approx(1 - st.wilson(0, 29)[1])
    assert st.wilson(0, 0) == (0.0, 1.0)
    for n in range(1, 400):
        low, high = st.wilson(0, n)[0], st.wilson(n, n)[1]
        assert 0 <= low < 1e-15 and 1 - 1e-15 < high <= 1, "no rounding leads out of 0..1"


def test_student_t_quantiles_against_the_table() -> None:
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 30: 2.0423, 120: 1.9799}
    for degrees, value in table.items():
        assert st.student_t_quantile(0.975, degrees) == pytest.approx(value, abs=5e-5)
    assert st.student_t_quantile(0.05, 6) == pytest.approx(-1.9432, abs=5e-5)
    far = st.student_t_quantile(1 - 1e-6, 1)  # Cauchy's: the tangent of (p - 1/2) pi
    assert far == pytest.approx(math.tan(math.pi * (0.5 - 1e-6)), rel=1e-8)


def test_mean_interval_by_hand() -> None:
    # mean 3, standard deviation sqrt(2.5), standard error sqrt(0.5); t(0.975, 4) = 2.77645
    half = 2.776445 * math.sqrt(0.5)
    assert st.mean_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - half, 3 + half), abs=1e-5)
    assert st.mean_interval([4.0]) == (-math.inf, math.inf)


def test_paired_difference_against_a_published_example() -> None:
    # 21 children before and after: 1 both, 1 only before, 7 only after, 12 neither.
    # Fagerland, Lydersen and Laake (2014) give Newcombe's interval of p1 - p2 as (-0.507, -0.026).
    before = [1] + [1] + [0] * 7 + [0] * 12
    after = [1] + [0] + [1] * 7 + [0] * 12
    assert st.paired_difference_interval(before, after) == pytest.approx((0.026, 0.507), abs=5e-4)
    low, high = st.paired_difference_interval([1] * 20, [1] * 20)
    assert low == pytest.approx(-st.wilson(0, 20)[1]) and high == pytest.approx(st.wilson(0, 20)[1])


def test_paired_difference_with_correlation_by_hand() -> None:
    """Halves of 20, so that all four distances to Wilson's limits are d = 0.200702."""
    before = [1] * 10 + [0] * 10
    alike, unlike = [1] * 8 + [0] * 2 + [1] * 2 + [0] * 8, [1] * 2 + [0] * 8 + [1] * 8 + [0] * 2
    # Covariance 0.4 - 1/4 - 1/40 = 1/8 over spread 1/4: correlation 1/2, and d sqrt(1 - 2 / 2 + 1) = d.
    assert st.paired_difference_interval(before, alike) == pytest.approx((-0.200702, 0.200702), abs=5e-7)
    # Covariance 0.1 - 1/4, uncorrected: correlation -0.6, and d sqrt(2 + 1.2).
    half = 0.200702 * math.sqrt(3.2)
    assert st.paired_difference_interval(before, unlike) == pytest.approx((-half, half), abs=1e-6)
    # 10 and 15 of 20: spread sqrt(1/4 x 3/16), covariance (10 / 20) - 3/8 - 1/40 = 1/10, correlation 0.4619.
    below, above = 0.75 - st.wilson(15, 20)[0], st.wilson(15, 20)[1] - 0.75
    correlation = 0.1 / math.sqrt(3 / 64)
    low, high = (math.sqrt(side**2 - 2 * correlation * side * 0.200702 + 0.200702**2) for side in (below, above))
    more = [1] * 15 + [0] * 5
    assert st.paired_difference_interval(before, more) == pytest.approx((0.25 - low, 0.25 + high), abs=1e-6)


def test_p_of_a_mean_by_hand() -> None:
    # 0 and 2: mean 1, standard error 1, and P(T > 1) = 1/4 with one degree of freedom
    assert st.mean_p([0, 2]) == st.mean_p([0, -2]) == pytest.approx(0.5)
    # 0, 1, 2: t = sqrt(3) with two degrees, P(T <= t) = 1/2 + t / (2 sqrt(2 + t^2))
    assert st.mean_p([0, 1, 2]) == pytest.approx(1 - math.sqrt(3 / 5))
    assert (st.mean_p([1, 1]), st.mean_p([0, 0])) == (0.0, 1.0)
    assert math.isnan(st.mean_p([3]))


def test_paired_difference_of_scores_is_students_t() -> None:
    before, after = np.array([0.5, 0.25, 0.75]), np.array([1.0, 0.25, 1.0])
    assert st.paired_difference_interval(before, after) == st.mean_interval(after - before)
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        st.paired_difference_interval(before, after[:2])


def test_mean_of_intervals_by_hand() -> None:
    # distances to the lower limits 0.3 and 0.4 give hypot 0.5, halved by the mean of two
    low, high = st.mean_of_intervals([0.5, 0.9], [(0.2, 0.6), (0.5, 0.9)])
    assert (low, high) == pytest.approx((0.7 - 0.25, 0.7 + 0.05))


def test_mcnemar_by_hand() -> None:
    # 1 loss, 7 gains: P(X <= 1) = (1 + 8) / 256 under Binomial(8, 1/2)
    assert st.mcnemar_exact(1, 7, "better") == 9 / 256
    assert st.mcnemar_exact(1, 7) == 18 / 256
    assert st.mcnemar_exact(1, 7, "worse") == 255 / 256
    assert st.mcnemar_exact(3, 3) == 1.0 and st.mcnemar_exact(0, 0) == 1.0
    assert st.mcnemar_exact(2000, 2000) == 1.0, "no overflow"


def test_holm_by_hand() -> None:
    assert st.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert st.holm([0.6, 0.5]) == [1.0, 1.0]
    assert st.holm([]) == []


def test_auc_by_hand_and_against_all_pairs() -> None:
    assert st.auc([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0]) == 0.75  # three of four pairs in order
    assert st.auc([1, 1, 1], [1, 0, 1]) == 0.5
    assert math.isnan(st.auc([1, 2], [1, 1])) and math.isnan(st.auc([1, 2], [0, 0]))
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 5, 60), rng.integers(0, 2, 60)
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels == 1] for b in scores[labels == 0]]
    assert st.auc(scores, labels) == pytest.approx(np.mean(pairs))


def test_spearman_by_hand() -> None:
    # ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24) = 0.8
    assert st.spearman([10, 20, 30, 40, 50], [2, 1, 4, 3, 5]) == pytest.approx(0.8)
    assert st.spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1.0)
    assert math.isnan(st.spearman([1, 1], [1, 2]))


def test_non_inferiority_by_hand() -> None:
    # 2 new failures and 1 repaired one in 100: d = 0.01, mean square 0.03, se = sqrt(0.0299 / 100)
    base, new = np.zeros(100), np.zeros(100)
    new[:2], base[2] = 1, 1
    result = st.non_inferiority(new, base, margin=0.06)
    assert result.difference == pytest.approx(0.01)
    assert result.upper == pytest.approx(0.01 + 2.3263479 * math.sqrt(0.0299 / 100))
    assert result.passed and not st.non_inferiority(new, base, margin=0.05).passed


@pytest.mark.parametrize(
    ("n", "discordance", "drop", "rejected"),
    [
        (200, 0.02, 0.00, 0.018),  # a null update is seldom refused ...
        (200, 0.02, 0.05, 0.974),  # ... a true fall of 5 points is nearly always caught,
        (200, 0.02, 0.10, 1.000),
        (200, 0.10, 0.00, 0.530),  # too few probes for so much discordance
        (900, 0.10, 0.00, 0.009),
        (900, 0.10, 0.05, 0.989),
    ],
)
def test_operating_characteristics_of_the_gate(n: int, discordance: float, drop: float, rejected: float) -> None:
    """Share of candidates that fail the test at margin 5 points and level 0.99."""
    rng = np.random.default_rng(0)
    simulations, failures = 1500, 0
    for _ in range(simulations):
        draw = rng.random(n)
        new = draw < discordance / 2 + drop
        base = (draw >= 0.5) & (draw < 0.5 + discordance / 2)
        failures += not st.non_inferiority(new, base, margin=0.05).passed
    tolerance = 4 * math.sqrt(max(rejected * (1 - rejected), 0.002) / simulations)
    assert failures / simulations == pytest.approx(rejected, abs=tolerance)
