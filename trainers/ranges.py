"""Ranges of options, told once where a field is declared: ``epochs: Count = 1``, ``lr: Positive | None = None``.

A class that gives a field another default need not say its range again. Numbers without a range may be anything
finite; what is not finite is refused everywhere. Importing this imports no torch.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, get_type_hints

from ..errors import UsageError


@dataclass(frozen=True)
class Range:
    """Numbers from ``least`` to ``most``; without the first or the last where it is ``open``."""

    least: float = -math.inf
    most: float = math.inf
    open: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is finite and lies within."""
        inside = self.least < value < self.most if self.open else self.least <= value <= self.most
        return math.isfinite(value) and inside

    def __str__(self) -> str:
        below, above = (math.isinf(end) for end in (self.least, self.most))
        if below and above:
            return "a finite number"
        if above:
            return (
                f"a finite number above {self.least:g}" if self.open else f"a finite number of {self.least:g} or more"
            )
        between = "strictly between" if self.open else "from"
        return f"a number {between} {self.least:g} {'and' if self.open else 'to'} {self.most:g}"


Count = Annotated[int, Range(1)]
"""1 or more."""
Whole = Annotated[int, Range(0)]
"""0 or more."""
Number = Annotated[float, Range()]
"""Any finite number."""
Positive = Annotated[float, Range(0, open=True)]
"""Above 0."""
Amount = Annotated[float, Range(0)]
"""0 or more."""
Share = Annotated[float, Range(0, 1)]
"""From 0 to 1."""


@cache
def ranges_of(kind: Any) -> dict[str, Range]:
    """Field -> its range, by the latest class that tells one."""
    found: dict[str, Range] = {}
    for each in kind.__mro__:
        if not hasattr(each, "__dataclass_fields__"):
            continue
        hints = get_type_hints(each, include_extras=True)
        for name in vars(each).get("__annotations__", {}):
            for told in _told(hints[name]):
                found.setdefault(name, told)
    return found


def check_ranges(options: Any) -> None:
    """Refuse numbers of a dataclass that are not finite or out of their range.

    Raises:
        UsageError: the first of them, by its flag.
    """
    kind: Any = type(options)
    ranges = ranges_of(kind)
    for each in fields(options):
        given = getattr(options, each.name)
        for value in given if isinstance(given, tuple) else (given,):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and not (allowed := ranges.get(each.name, Range())).holds(value):
                raise UsageError(f"--{each.name.replace('_', '-')} is {allowed}, not {value}")


def _told(hint: Any) -> Iterator[Range]:
    """The ranges in a type: of Annotated, within unions and tuples."""
    yield from (extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Range))
    for inner in typing.get_args(hint):
        if not isinstance(inner, Range):
            yield from _told(inner)
