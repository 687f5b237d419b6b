"""Which initial states are for what.

Seeds come from disjoint ranges, one per split, so that no state is both learned from and judged on.
Equal seeds mean equal states, but unequal seeds need not mean unequal ones: a test compares the states themselves.
"""

from __future__ import annotations

from typing import Literal, get_args

Split = Literal["train", "eval", "probe", "demo", "tune"]
"""Learned from; reported; seen by the gate; demonstrated; looked at while choosing settings."""

WIDTH = 100_000_000


def seeds(split: Split, n: int, offset: int = 0) -> list[int]:
    """n seeds of a split, from its offset-th on; splits never share a seed.

    Raises:
        ValueError: no such split, or more seeds than it has.
    """
    splits = get_args(Split)
    if split not in splits:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(splits)}")
    if not 0 <= offset <= offset + n <= WIDTH:
        raise ValueError(f"split {split!r} has seeds 0..{WIDTH - 1}, asked for {n} from {offset} on")
    first = splits.index(split) * WIDTH + offset
    return list(range(first, first + n))
