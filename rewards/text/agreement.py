"""Rank agreement of two scores of the same things: weight of a preference that judges itself, and alarm of drift.

CREAM (arXiv 2410.12735) softens a preference by how much this iteration's ranking agrees with the last one's. The
formulas were read beside the released code (Raibows/CREAM at de1d04b, cal_consistency.py), whose ranks are
``ordinal_consistency``'s; "best" is the best response here, where the code looks at positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two lists of scores of the same things, in -1..1; ties are taken out of the divisor.

    (C - D) / √((C + D + T₁)(C + D + T₂)) over all pairs: concordant, discordant, tied in one list only. 0 where either
    list does not order anything (fewer than two things, or all equal).

    Raises:
        ValueError: the lists differ in length, or hold a number that has no place in an order.
    """
    if len(first) != len(second):
        raise ValueError(f"two rankings of the same things have one length, not {len(first)} and {len(second)}")
    if not all(map(math.isfinite, [*first, *second])):
        raise ValueError("a ranking holds a score that is not finite")
    difference, ordered_first, ordered_second = 0, 0, 0
    for i in range(len(first)):
        for j in range(i):
            one, other = _sign(first[i] - first[j]), _sign(second[i] - second[j])
            difference += one * other
            ordered_first += abs(one)
            ordered_second += abs(other)
    scale = math.sqrt(ordered_first * ordered_second)
    return difference / scale if scale else 0.0


def consistency(first: Sequence[float], second: Sequence[float]) -> float:
    """C = (tau + 1) / 2, in 0..1: 1 for the same order, 0 for the opposite one, ½ for no relation."""
    return (kendall_tau(first, second) + 1) / 2


def ordinal_consistency(first: Sequence[float], second: Sequence[float]) -> float:
    """``consistency`` of ranks, among equals in the order in which they stand: equals in both lists agree, so that two
    lists of nothing but equals have C = 1."""
    return consistency(*(_ranks(scores) for scores in (first, second)))


def same_extremes(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether one thing is best and one is worst in both lists; among equals the earlier counts."""
    if len(first) != len(second) or not first:
        raise ValueError(f"two rankings of the same things, at least one: got {len(first)} and {len(second)}")
    return all(
        pick(range(len(first)), key=first.__getitem__) == pick(range(len(second)), key=second.__getitem__)
        for pick in (max, min)
    )


def _ranks(scores: Sequence[float]) -> list[float]:
    ranks = [0.0] * len(scores)
    for rank, place in enumerate(sorted(range(len(scores)), key=scores.__getitem__)):
        ranks[place] = float(rank)
    return ranks


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
