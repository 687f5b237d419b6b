"""Two evaluations of a run side by side, with the statistics that a claim needs.

An evaluation is what a run writes to evaluations/NAME.json::

    {"iteration": 20, "unit": "success", "notes": ["..."],
     "outcomes": {category: {"success": [0, 1, ...],    the oracle's outcome per episode
                             "score": [0.3, ...],       the training reward on the same episodes
                             "seeds": [7, ...]}}}       the episodes; equal seeds pair two evaluations

"score" and "seeds" may be missing. Outcomes other than 0/1 are compared as plain numbers. Further keys: see
``evaluations``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...numbers import Interval, mean
from ...statistics import (
    FEW,
    auc,
    grade,
    holm,
    mcnemar_exact,
    mean_interval,
    mean_of_intervals,
    paired_difference_interval,
    wilson,
)

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Row:
    """One category before and after, or their mean.

    Attributes:
        episodes: how many episodes each side has.
        before, after: mean outcome; the intervals are at 95 %.
        difference: after minus before; its interval is None when the episodes are not the same.
        losses, gains: pairs that got worse and better.
        p: exact McNemar, two-sided, Holm-corrected over the categories; None without 0/1 pairs.
    """

    category: str
    episodes: tuple[int, int]
    before: float
    before_interval: Interval
    after: float
    after_interval: Interval
    difference: float
    difference_interval: Interval | None = None
    losses: int = 0
    gains: int = 0
    p: float | None = None

    @property
    def rose(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT and self.difference > 0

    @property
    def fell(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT and self.difference < 0

    @property
    def told_apart(self) -> bool | None:
        """Whether before and after differ, by the test or else by the interval of the difference; None without both."""
        if self.p is not None:
            return self.p < SIGNIFICANT
        if self.difference_interval is None or not all(map(math.isfinite, self.difference_interval)):
            return None
        return not self.difference_interval[0] <= 0 <= self.difference_interval[1]


@dataclass(frozen=True)
class Comparison:
    """Rows per category, their unweighted mean, and whether outcomes are rates of 0/1."""

    rows: tuple[Row, ...]
    mean: Row
    rates: bool


@dataclass(frozen=True)
class Audit:
    """What the training reward is worth in one category, by the oracle.

    Attributes:
        auc: P(reward of a success > reward of a failure) over both evaluations; NaN with one class.
        successes, failures: episodes it rests on.
        reward_change, success_change: after minus before.
        finding: the same in words, as what "the reward" does.
    """

    category: str
    auc: float
    successes: int
    failures: int
    reward_change: float
    success_change: float
    finding: str

    @property
    def doubtful(self) -> bool:
        """Enough episodes of both kinds, and the reward does not rank successes above failures."""
        return min(self.successes, self.failures) >= FEW and grade(self.auc).doubtful

    @property
    def sentence(self) -> str:
        return f"on {self.category} the reward {self.finding}"


def outcome_interval(values: Sequence[float]) -> Interval:
    """95 % interval of a mean outcome: Wilson for 0/1, Student's t otherwise."""
    if set(values) <= {0, 1}:
        return wilson(sum(values), len(values))
    return mean_interval(values)


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Comparison | None:
    """Compare the categories that both evaluations hold; None when they share none."""
    first, second = before["outcomes"], after["outcomes"]
    rows = [_row(category, first[category], second[category]) for category in first if category in second]
    if not rows:
        return None
    adjusted = iter(holm([row.p for row in rows if row.p is not None]))
    rows = [row if row.p is None else replace(row, p=next(adjusted)) for row in rows]
    rates = all(set(part[row.category]["success"]) <= {0, 1} for row in rows for part in (first, second))
    return Comparison(tuple(rows), _mean_row(rows), rates)


def audit(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Audit]:
    """The reward against the outcome, for every category whose attempts carry a score.

    An outcome that is no 0/1 counts as a success where it lies above the median of both evaluations.
    """
    found = []
    for category, first in before["outcomes"].items():
        second = after["outcomes"].get(category, {})
        if "score" not in first or "score" not in second:
            continue
        success = np.array([*first["success"], *second["success"]], dtype=float)
        score = np.array([*first["score"], *second["score"]], dtype=float)
        known = np.isfinite(score)
        success, score = success[known], score[known]
        success = success > (0 if set(success) <= {0, 1} else np.median(success))
        separation = auc(score, success) if known.any() else float("nan")
        wins = int(success.sum())
        change = mean(filter(math.isfinite, second["score"])) - mean(filter(math.isfinite, first["score"]))
        gained = mean(second["success"]) - mean(first["success"])
        words = _finding(separation, wins, len(success) - wins, change, gained)
        found.append(Audit(category, separation, wins, len(success) - wins, change, gained, words))
    return found


def _row(category: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Row:
    x, y = first["success"], second["success"]
    row = Row(
        category,
        (len(x), len(y)),
        mean(x),
        outcome_interval(x),
        mean(y),
        outcome_interval(y),
        mean(y) - mean(x),
    )
    if len(x) != len(y) or first.get("seeds") != second.get("seeds"):
        return row
    row = replace(row, difference_interval=paired_difference_interval(x, y))
    if not set(x) | set(y) <= {0, 1}:
        return row
    losses, gains = (sum(a - b == sign for a, b in zip(x, y, strict=True)) for sign in (1, -1))
    return replace(row, losses=losses, gains=gains, p=mcnemar_exact(losses, gains))


def _mean_row(rows: Sequence[Row]) -> Row:
    """The unweighted mean over categories; its p-value pools the changed pairs of all of them."""
    before, after = [row.before for row in rows], [row.after for row in rows]
    paired = [row.difference_interval for row in rows if row.difference_interval is not None]
    whole = len(paired) == len(rows)
    losses, gains = sum(row.losses for row in rows), sum(row.gains for row in rows)
    return Row(
        "mean",
        (sum(row.episodes[0] for row in rows), sum(row.episodes[1] for row in rows)),
        mean(before),
        mean_of_intervals(before, [row.before_interval for row in rows]),
        mean(after),
        mean_of_intervals(after, [row.after_interval for row in rows]),
        mean(after) - mean(before),
        mean_of_intervals([row.difference for row in rows], paired) if whole else None,
        losses,
        gains,
        mcnemar_exact(losses, gains) if all(row.p is not None for row in rows) else None,
    )


def _finding(separation: float, wins: int, failures: int, change: float, gained: float) -> str:
    if min(wins, failures) == 0:
        words = f"cannot be checked, as every episode {'failed' if wins == 0 else 'succeeded'}"
    elif min(wins, failures) < FEW:
        words = f"cannot be judged on so few {'successes' if wins < failures else 'failures'}"
    else:
        words = grade(separation).words
    if change > 0 and gained <= -0.05:
        words += ", and rose while success fell"
    return words
