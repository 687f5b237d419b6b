"""Rewards as values: any callable, weighted and added.

    reward = 0.7 * Reward(right_answer) + 0.3 * Reward(short_enough)

A reward function is called with keyword columns (``tasks``, ``prompts``, ``outputs`` under the names
``completions``, ``images`` and ``episodes``, ``references``, and whatever the tasks' ``extra`` holds),
names those it wants and takes the rest as ``**kwargs``. It returns one score per sample; None means
that it does not apply. A function written for TRL works where it reads completions as plain strings; completions as
messages, and TRL's columns ``completion_ids`` and ``trainer_state``, do not exist here. A reward with parameters is a
class with ``__call__``, so that it can travel to another process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..families import families_of
from ..types import Score


class Reward:
    """A reward function with a name, a weight and arithmetic.

    Args:
        function: called with keyword columns; returns one score per sample, or a mapping of named ones.
        name: how it is logged; the function's own name by default.
        differentiable: scores are a tensor through which gradient flows to the outputs.
        families: what it was learned or computed from (see ``autotelic.families``), where the function declares none.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        *,
        differentiable: bool | None = None,
        families: Iterable[str] | None = None,
    ) -> None:
        self.function = function
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

    def __call__(self, **columns: Any) -> Mapping[str, Sequence[Score]]:
        result = self.function(**columns)
        return result if isinstance(result, Mapping) else {self.name: result, "total": result}

    def __add__(self, other: Reward) -> Reward:
        return WeightedSum([*self.terms, *other.terms])

    def __mul__(self, weight: float) -> Reward:
        return WeightedSum([(weight * own, term) for own, term in self.terms])

    __rmul__ = __mul__


class WeightedSum(Reward):
    """A weighted sum of rewards; a term that does not apply to a sample is left out of its sum."""

    def __init__(self, terms: Sequence[tuple[float, Reward]]) -> None:
        super().__init__(self.combine, " + ".join(f"{weight:g} {term.name}" for weight, term in terms))
        self._terms = list(terms)
        self.differentiable = all(term.differentiable for _, term in terms)

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
        for weight, term in self._terms:
            scores = dict(term(**columns))
            parts.append((weight, scores.pop("total", next(iter(scores.values()), []))))
            named |= scores
        counts = {term.name: len(scores) for (_, term), (_, scores) in zip(self._terms, parts, strict=True)}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ValueError(f"the terms returned different numbers of scores: {said}")
        rows = list(zip(*(scores for _, scores in parts), strict=True))
        named["total"] = [_weighted([w for w, _ in parts], row) for row in rows]
        return named


def _weighted(weights: Sequence[float], scores: Sequence[Score]) -> Score:
    applying = [(w, s) for w, s in zip(weights, scores, strict=True) if s is not None]
    if not applying:
        return None
    if any(isinstance(s, Tensor) for _, s in applying):
        return torch.stack([w * torch.as_tensor(s) for w, s in applying]).sum(0)
    if any(isinstance(s, Sequence) for _, s in applying):
        raise ValueError("per-segment scores are combined as tensors of equal length, not as lists")
    return math.fsum(w * float(s) for w, s in applying)  # type: ignore[arg-type]
