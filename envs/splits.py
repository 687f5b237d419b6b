"""Which initial states are for what.

Seeds come from disjoint ranges, one per split, so that no state is both learned from and judged on.
Equal seeds mean equal states, but unequal seeds need not mean unequal ones: ``assert_disjoint`` checks
the states themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .pool import EpisodeRequest, Pool

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


def assert_disjoint(pool: Pool, environment: str, a: Sequence[int], b: Sequence[int]) -> None:
    """Check that two lists of seeds lead to different initial states, by a hash of what is observed there.

    Raises:
        AssertionError: naming one pair of seeds with the same state.
    """
    states = _hashes(pool, environment, a)
    for digest, seed in _hashes(pool, environment, b).items():
        if digest in states:
            raise AssertionError(f"{environment}: seeds {states[digest]} and {seed} have the same initial state")


def _hashes(pool: Pool, environment: str, seeds: Sequence[int]) -> dict[str, int]:
    requests = [EpisodeRequest(environment, seed, 0) for seed in seeds]
    episodes = pool.run(requests, _never)
    return {hashlib.sha256(episode.observations[0].tobytes()).hexdigest(): episode.seed for episode in episodes}


def _never(rows: NDArray[np.int64], observations: NDArray[np.float32]) -> NDArray[np.float32]:
    raise AssertionError("episodes of horizon 0 take no action")
