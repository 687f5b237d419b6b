"""Verifier of numbers that are nearly right: part of the reward for every figure in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import UsageError
from .answers import Extract, answer_of
from .quantities import quantity_of
from .verifiers import Verifier


class Digits(Verifier):
    """1.0 for the reference's whole number; for another one with as many figures, a part for each that is right.

    A number that is wrong in k of n places scores partial * (n - k) / n, one of another length or sign 0. Sampled at
    temperature 1 a small model is seldom quite right: its answers then differ in this where they are all wrong, and
    groups have something to compare. Whoever judges a run should ask for the right number alone (``Numeric``).

    Args:
        partial: the most that a wrong number can score, in 0..1.
        extract: as for every verifier.

    Table:
        72    right  `72`, `= 72`, `\\boxed{72}`
        72    wrong  `27`, `7`, `72 or 73`, `-72`, `72.5`, ``

    Raises:
        UsageError: ``partial`` outside 0..1.
    """

    def __init__(self, partial: float = 0.5, extract: Extract = answer_of) -> None:
        super().__init__(extract)
        if not 0 <= partial <= 1:
            raise UsageError(f"a wrong number scores between 0 and 1, not {partial:g}")
        self.partial = partial

    def check(self, reference: Any, row: Mapping[str, Any]) -> None:
        self._gold(reference)

    def _gold(self, reference: Any) -> str:
        gold = max((_whole(text) or "" for text in self.golds(reference)), key=len)
        if not gold:
            raise ValueError(f'the reference "{reference}" is no whole number')
        return gold

    def right(self, answer: str, reference: Any, row: Mapping[str, Any]) -> float:
        said, gold = _whole(answer), self._gold(reference)
        if said == gold:
            return 1.0
        if said is None or len(said) != len(gold) or said.startswith("-") != gold.startswith("-"):
            return 0.0
        figures = gold.lstrip("-")
        same = sum(a == b for a, b in zip(said.lstrip("-"), figures, strict=True))
        return self.partial * same / len(figures)


def _whole(text: str) -> str | None:
    """The one number of a text in figures, if it is a whole one."""
    found = quantity_of(text)
    if found is None or not found.worked_out or found.values[0].denominator > 1:
        return None
    return str(found.values[0])
