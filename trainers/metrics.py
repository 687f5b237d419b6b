"""Metrics that are the same on one process and on many: numbers that know how they add up over processes.

A kind of number is a ``float``, the value on this process, with what it takes to find the value on all of them. A plain
float is taken for a mean over rollouts where the number of rollouts is known (``of_rows``), else the plain mean of the
processes that tell it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor

from .distributed import gather


class Mean(float):
    """A mean, as a sum and how many were added up; ``empty`` where there were none."""

    total: float
    count: float
    empty: float

    def __new__(cls, total: float, count: float, empty: float = 0.0) -> Self:
        made = super().__new__(cls, total / count if count else empty)
        made.total, made.count, made.empty = total, count, empty
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.total, self.count, self.empty

    @classmethod
    def of(cls, values: Tensor, counted: Tensor | None = None) -> Self:
        """The mean of a tensor's numbers, where ``counted`` (a bool tensor of its shape) is True; 0 of none."""
        values = values.detach()
        if counted is not None:
            values = torch.where(counted, values, 0.0)
        count = values.numel() if counted is None else int(counted.sum())
        return cls(values.sum(dtype=torch.float64).item(), count)

    @classmethod
    def of_numbers(cls, values: Sequence[float], empty: float = 0.0) -> Self:
        """The mean of some numbers."""
        return cls(math.fsum(values), len(values), empty)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> float:
        """The value over all processes, of each one's."""
        return cls(math.fsum(part.total for part in parts), math.fsum(part.count for part in parts), parts[0].empty)


class Share(float):
    """This process's share of a sum, such as of a loss or of a number of rollouts."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> float:
        return math.fsum(parts)


class Largest(float):
    """A maximum."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> float:
        return max(parts)


class Paired(float):
    """What two columns of numbers have to do with each other.

    "correlation" is Pearson's r, 0 where either does not vary; "explained" the share of the second's variance that the
    first explains, 1 - Var(b - a) / Var(b), 0 where the second does not vary. Means and products of deviations are
    merged by batches (Chan et al., 1983, not checked).
    """

    kind: Literal["correlation", "explained"]
    moments: tuple[float, ...]  # n, mean of a, mean of b, and sums of the deviations' products: aa, ab, bb

    def __new__(cls, kind: Literal["correlation", "explained"], moments: tuple[float, ...]) -> Self:
        made = super().__new__(cls, _correlation(moments) if kind == "correlation" else _explained(moments))
        made.kind, made.moments = kind, moments
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.kind, self.moments

    @classmethod
    def of(cls, kind: Literal["correlation", "explained"], a: Tensor, b: Tensor) -> Self:
        """Of two columns [N]."""
        a, b = a.detach().double(), b.detach().double()
        if not len(a):
            return cls(kind, (0.0,) * 6)
        da, db = a - a.mean(), b - b.mean()
        found = torch.stack([a.mean(), b.mean(), da @ da, da @ db, db @ db])
        return cls(kind, (float(len(a)), *found.tolist()))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> float:
        n, *rest = parts[0].moments
        for part in parts[1:]:
            more, *other = part.moments
            if not n or not more:
                n, rest = (n, rest) if n else (more, other)
                continue
            a, b = other[0] - rest[0], other[1] - rest[1]
            between = n * more / (n + more)
            means = [rest[0] + a * more / (n + more), rest[1] + b * more / (n + more)]
            apart = (a * a * between, a * b * between, b * b * between)
            rest = [*means, *(x + y + z for x, y, z in zip(rest[2:], other[2:], apart, strict=True))]
            n += more
        return cls(parts[0].kind, (n, *rest))


def of_rows(metrics: Mapping[str, float], rows: int) -> dict[str, float]:
    """Metrics of so many rollouts: plain numbers are means over them."""
    return {name: Mean(value * rows, rows) if _is_plain(value) else value for name, value in metrics.items()}


def joined(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Plain numbers by name: what each process told, put together. A name may be missing in some."""
    told: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            told.setdefault(name, []).append(value)
    return {name: _joined(values) for name, values in told.items()}


def everywhere(*metrics: Mapping[str, float]) -> list[dict[str, float]]:
    """Each of some mappings over all processes, in one message; every process takes part, with as many."""
    return [joined(parts) for parts in zip(*gather([metrics]), strict=True)]


def _joined(values: Sequence[Any]) -> float:
    kind = next((type(value) for value in values if not _is_plain(value)), None)
    if kind is None:
        return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else float(sum(values) / len(values))
    return float(kind.joined([value for value in values if isinstance(value, kind)]))


def _is_plain(value: float) -> bool:
    return not isinstance(value, Mean | Share | Largest | Paired)


def _correlation(moments: tuple[float, ...]) -> float:
    n, _, _, aa, ab, bb = moments
    return ab / max(math.sqrt(aa) * math.sqrt(bb), 1e-12) if n > 1 else 0.0


def _explained(moments: tuple[float, ...]) -> float:
    _, _, _, aa, ab, bb = moments
    return 1 - (aa - 2 * ab + bb) / bb if bb > 0 else 0.0
