"""A reward that knows nothing: the control that stands beside every gain."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any


class Random:
    """A number in 0..1, drawn for every attempt whatever it is: the control of every other reward.

    What a run gains from it comes from the rest (the updates themselves, clipping, imitation beside them, the gate),
    as in "Spurious Rewards" (arXiv:2506.10947, which tosses a coin; recalled). The draw hangs on the run's seed, its
    round, the player, the task's id and the attempt's number alone, so that a run that is resumed, or has other numbers
    of processes or workers, draws the same.
    """

    needs = ()
    families = frozenset({"chance"})
    minimum = 0.0

    def __call__(self, rollouts: Sequence[Any], trainer_state: Any, **columns: Any) -> list[float]:
        when, seen = (trainer_state.seed, trainer_state.global_step), Counter[tuple[str, str]]()
        drawn = []
        for rollout in rollouts:
            attempt = (rollout.player, rollout.task.id)
            drawn.append(random.Random(repr((*when, *attempt, seen[attempt]))).random())
            seen[attempt] += 1
        return drawn
