"""Whether seeds of different purposes lead to different initial states, by a hash of what is observed there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autotelic.envs.pool import EpisodeRequest, Pool


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
