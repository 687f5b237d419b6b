"""Small number work that every room needs: scores as numbers, means, rows of equal keys, figures in words."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .types import Score

Floats = NDArray[np.float32]
Interval = tuple[float, float]
Key = TypeVar("Key", bound=Hashable)


def scalar(score: Score) -> float:
    """A score as one number: the sum of a score per segment; NaN where it is None, does not apply."""
    if score is None:
        return math.nan
    if isinstance(score, Sequence) and not isinstance(score, str):
        return math.fsum(float(part) for part in score)
    value: Any = score
    return (
        float(value.sum().item()) if hasattr(value, "sum") else float(value)
    )  # a tensor, an array, a number of either


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean; NaN of nothing."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def rows_by_key(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """The rows of each key in order, keys in the order of their first row."""
    rows: dict[Key, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return rows


def plain(value: Any) -> Any:
    """The value in strict JSON's types."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no JSON form: {value!r}")


def figure(value: Any, sign: str = "", digits: int = 3) -> str:
    """A number with so many significant digits; "n/a" for what is none or not finite."""
    known = isinstance(value, int | float) and math.isfinite(value)
    return unsigned(f"{value:{sign}.{digits}g}", sign) if known else "n/a"


def unsigned(text: str, sign: str = "") -> str:
    """A written number, with ``sign`` in place of a minus where it is zero."""
    return sign + text[1:] if text.startswith("-") and not text.strip("-0.") else text


def p_value(value: float | None) -> str:
    """A p-value with what can be told apart; empty for None."""
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


@dataclass(frozen=True)
class Outcomes:
    """Outcomes in words: rates in percent, other outcomes as they are.

    Attributes:
        rates: whether they are shares of 0/1.
    """

    rates: bool

    def value(self, x: float, sign: str = "") -> str:
        """A mean outcome; percent to one decimal, without its sign."""
        return unsigned(f"{100 * x:{sign}.1f}", sign) if self.rates and math.isfinite(x) else figure(x, sign)

    def interval(self, interval: Interval | None, sign: str = "") -> str:
        """Its limits as "low to high"; empty where there are none."""
        if interval is None or not all(map(math.isfinite, interval)):
            return ""
        low, high = (unsigned(f"{100 * x:{sign}.0f}", sign) if self.rates else figure(x, sign) for x in interval)
        return f"{low} to {high}"

    def with_unit(self, x: float) -> str:
        """A mean outcome with its percent sign, if it has one."""
        return f"{self.value(x)}\u00a0%" if self.rates else self.value(x)

    def change(self, x: float) -> str:
        """A difference, in points where outcomes are rates."""
        return f"{self.value(x, '+')} points" if self.rates else self.value(x, "+")
