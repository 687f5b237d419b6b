"""Normalised sum of rewards: several at once, each on the scale of its own prompt.

Added raw, the reward with the largest spread decides alone. Here every term is first expressed in standard deviations
from the mean of its group, the samples of one prompt, and only then weighted and added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...errors import UsageError
from ...numbers import rows_by_key
from ...types import Score
from ..reward import Reward, WeightedSum


class NormalisedSum(WeightedSum):
    """Σ weight · (r - mean) / max(std, std_floor), with mean and std over the sample's group, term by term.

    Groups are the column ``groups``: one id per sample, the same for the samples of one prompt. A term that does not
    apply to a sample (None) is left out of its sum, and the statistics are those of the samples to which it applies;
    where none applies the total is None. A term contributes exactly 0 where its group has no spread or one sample.
    The standard deviation is the unbiased one (N - 1), as in group-relative advantages.

    The result holds every term's raw scores under its name, and the sum as ``total``. The mean of ``total`` over a
    group is 0 by construction: it says who is better within a group and nothing about progress, which the raw terms
    tell. For the same reason it can not judge a probe, and has no gradient for a single picture.

    Args:
        terms: (weight, reward) each; those of a weighted sum are its ``terms``.
        std_floor: a spread below it is not blown up to 1; in the units of the raw scores.

    Raises:
        UsageError: no term, two terms of one name, a floor that is not positive, or an attempt to weight the sum or to
            add it to another reward, which would mix scales again: the place for both is among the terms.
    """

    group_aware = True

    def __init__(self, terms: Sequence[tuple[float, Reward]], std_floor: float = 1e-6) -> None:
        super().__init__(terms)
        names = [term.name for _, term in self.terms]
        if not names:
            raise UsageError("a normalised sum needs at least one reward")
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"two rewards are named {twice[0]}: give each its own name, so that both are recorded")
        if not std_floor > 0:
            raise UsageError(f"std_floor is {std_floor:g}, but a spread is compared with a positive floor")
        self.name = f"normalised {self.name}"
        self.differentiable, self.minimum = False, None
        self.std_floor = std_floor

    def combine(self, **columns: Any) -> Mapping[str, Sequence[Score]]:
        """Every term's raw scores by name, and the weighted sum of the normalised ones as ``total``."""
        if "groups" not in columns:
            raise ValueError(f'{self.name} needs the column "groups": one id per sample, the same within a prompt')
        members = rows_by_key(columns["groups"]).values()
        named: dict[str, Sequence[Score]] = {}
        totals: list[float | None] = [None] * len(columns["groups"])
        for (weight, term), scores in zip(self.terms, self.scores_of_terms(columns), strict=True):
            raw = scores.pop("total")
            named |= {term.name: raw} | scores
            if len(raw) != len(totals):
                raise ValueError(f"reward {term.name} returned {len(raw)} scores for {len(totals)} samples")
            numbers = [_number(term.name, score) for score in raw]
            for rows in members:
                for row, z in zip(rows, self._standard([numbers[row] for row in rows]), strict=True):
                    totals[row] = _plus(totals[row], None if z is None else weight * z)
        return named | {"total": totals}

    def _standard(self, scores: Sequence[float | None]) -> list[float | None]:
        applying = [score for score in scores if score is not None]
        # Rounding leaves equal scores a little off their mean, so equality is asked for itself.
        if not applying or min(applying) == max(applying):
            return [None if score is None else 0.0 for score in scores]
        mean = math.fsum(applying) / len(applying)
        std = math.sqrt(math.fsum((score - mean) ** 2 for score in applying) / (len(applying) - 1))
        return [None if score is None else (score - mean) / max(std, self.std_floor) for score in scores]

    def __add__(self, other: Reward) -> Reward:
        raise UsageError(f"{self.name} is not added to another reward: put that reward among its terms")

    # Asked before Reward.__add__ of the left side, because this is a subclass of it.
    __radd__ = __add__

    def __mul__(self, weight: float) -> Reward:
        raise UsageError(f"{self.name} is not weighted as a whole: give its terms their weights")

    __rmul__ = __mul__


def _number(name: str, score: Score) -> float | None:
    if score is None:
        return None
    if isinstance(score, Sequence) or (isinstance(score, Tensor) and score.numel() != 1):
        raise ValueError(f"reward {name} gives a score per segment; only one score per sample is normalised")
    return float(score)


def _plus(total: float | None, part: float | None) -> float | None:
    if part is None:
        return total
    return part if total is None else total + part
