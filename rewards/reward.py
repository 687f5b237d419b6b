"""Rewards as values: any callable, weighted and added.

    reward = 0.7 * Reward(right_answer) + 0.3 * Reward(short_enough)

A reward function is called with keyword columns and names those it wants (``autotelic.calling`` says how,
``returned`` what it may return): ``outputs``, ``completions`` and ``episodes`` are what the policy made, ``images``
what the task shows; beside them ``prompts``, ``references``, ``tasks``, ``groups`` and what the tasks' ``extra`` holds.
It returns one score per sample; None means that it does not apply. Functions written for TRL work as they are, async
ones too. A reward with parameters is a class with ``__call__``, so that it can travel to another process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..calling import call, settled
from ..errors import UsageError
from ..families import families_of
from ..returned import scores_of
from ..types import Score


class Reward:
    """A reward function with a name, a weight and arithmetic.

    Args:
        function: called with keyword columns; returns one score per sample, or a mapping of named ones.
        name: how it is logged; the function's own name by default.
        differentiable: scores are a tensor through which gradient flows to the outputs.
        families: what it was learned or computed from (see ``autotelic.families``), where the function declares none.
        minimum: what an output scores that broke the function or cannot be read; by default the function's own
            ``minimum``, and where it declares none the lowest score of the others.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        *,
        differentiable: bool | None = None,
        families: Iterable[str] | None = None,
        minimum: float | None = None,
    ) -> None:
        self.function = function
        self.minimum: float | None = getattr(function, "minimum", None) if minimum is None else minimum
        if self.minimum is not None and not math.isfinite(self.minimum):
            raise UsageError(f"the minimum of a reward is finite, not {self.minimum}")
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        declared = bool(getattr(function, "differentiable", False))
        self.differentiable = declared if differentiable is None else differentiable
        self._families = None if families is None else frozenset(families)

    @property
    def families(self) -> frozenset[str]:
        """Those that were given, else the function's."""
        return families_of(self.function) if self._families is None else self._families

    @property
    def terms(self) -> list[tuple[float, Reward]]:
        return [(1.0, self)]

    def begin(self, columns: Mapping[str, Any]) -> Any:
        """The function's result, or what has to be awaited for it."""
        return call(self.function, columns, differentiable=self.differentiable)

    def __call__(self, **columns: Any) -> Mapping[str, Sequence[Score]]:
        """Scores by name, "total" among them.

        Raises:
            RewardError: the function returned something that is no score.
        """
        return scores_of(self.name, settled([partial(self.begin, columns)])[0], columns)

    def __add__(self, other: Reward) -> Reward:
        return WeightedSum([*self.terms, *other.terms])

    def __mul__(self, weight: float) -> Reward:
        if not math.isfinite(weight):
            raise UsageError(f"the weight of the reward {self.name} is {weight}, which is not finite")
        return WeightedSum([(weight * own, term) for own, term in self.terms])

    __rmul__ = __mul__


class WeightedSum(Reward):
    """A weighted sum of rewards; a term that does not apply to a sample is left out of its sum."""

    def __init__(self, terms: Sequence[tuple[float, Reward]]) -> None:
        super().__init__(self.combine, " + ".join(f"{weight:g} {term.name}" for weight, term in terms))
        self._terms = list(terms)
        self.differentiable = all(term.differentiable for _, term in terms)
        lowest = [None if weight < 0 or term.minimum is None else weight * term.minimum for weight, term in terms]
        self.minimum = None if None in lowest else math.fsum(low for low in lowest if low is not None)

    @property
    def families(self) -> frozenset[str]:
        return families_of(*(term for _, term in self._terms))

    @property
    def terms(self) -> list[tuple[float, Reward]]:
        return self._terms

    def combine(self, **columns: Any) -> Mapping[str, Sequence[Score]]:
        """Every term's scores by name, and their weighted sum as ``total``."""
        named: dict[str, Sequence[Score]] = {}
        parts: list[tuple[float, Sequence[Score]]] = []
        for (weight, _), scores in zip(self._terms, self.scores_of_terms(columns), strict=True):
            parts.append((weight, scores.pop("total")))
            named |= scores
        counts = {term.name: len(scores) for (_, term), (_, scores) in zip(self._terms, parts, strict=True)}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ValueError(f"the terms returned different numbers of scores: {said}")
        rows = list(zip(*(scores for _, scores in parts), strict=True))
        named["total"] = [_weighted([w for w, _ in parts], row) for row in rows]
        return named

    def begin(self, columns: Mapping[str, Any]) -> Any:
        return self.combine(**columns)

    def scores_of_terms(self, columns: Mapping[str, Any]) -> list[dict[str, list[Score]]]:
        """Each term's scores by name, "total" among them; asynchronous terms wait together."""
        results = settled([partial(term.begin, columns) for _, term in self._terms])
        return [scores_of(term.name, done, columns) for (_, term), done in zip(self._terms, results, strict=True)]


def _weighted(weights: Sequence[float], scores: Sequence[Score]) -> Score:
    applying = [(w, s) for w, s in zip(weights, scores, strict=True) if s is not None]
    if not applying:
        return None
    if any(isinstance(s, Tensor) for _, s in applying):
        return torch.stack([w * torch.as_tensor(s) for w, s in applying]).sum(0)
    segments = max((len(s) for _, s in applying if isinstance(s, Sequence)), default=0)
    if not segments:
        return math.fsum(w * s for w, s in applying)  # type: ignore[operator]
    # A number belongs to the last segment, as in a batch.
    rows = [[*[0.0] * (segments - 1), s] if isinstance(s, float) else list(s) for _, s in applying]
    if any(len(row) != segments for row in rows):
        raise ValueError("the terms returned scores of different numbers of segments")
    return [math.fsum(w * row[k] for (w, _), row in zip(applying, rows, strict=True)) for k in range(segments)]
