"""Learners that learn nothing of the task: what a run of pictures counts, and an average of its weights."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..trainers.actors import TrainingWrapper
from ..trainers.contracts import Learner
from ..trainers.metrics import Mean, Share, everywhere
from ..types import Key, Players, Rollout, Task
from .faults import is_sound

if TYPE_CHECKING:
    from .policy import DenoisingPolicy

logger = logging.getLogger(__name__)

COLLAPSE = 0.5
"""Share of the first round's diversity below which a run is warned."""


class Watch(Learner):
    """Counts reward queries and watches how much the pictures of one prompt differ.

    Metrics: "queries" so far, and "pictures/diversity", the standard deviation over the pictures of a prompt,
    averaged over pixels and prompts.
    """

    def __init__(self) -> None:
        self.queries = 0
        self.first: float | None = None
        self.warned = False

    players: Players = "all"
    sees_own_rollouts_only = True

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        groups: dict[str, list[Tensor]] = defaultdict(list)
        for rollout in filter(is_sound, rollouts):
            groups[rollout.group_key].append(rollout.output)
        spreads = [float(torch.stack(g).std(0).mean()) for g in groups.values() if len(g) > 1]
        own = {"queries": Share(len(rollouts))} | ({"pictures/diversity": Mean.of_numbers(spreads)} if spreads else {})
        (metrics,) = everywhere(own)
        self.queries += int(metrics["queries"])
        metrics["queries"] = float(self.queries)
        if "pictures/diversity" not in metrics:
            return metrics
        diversity = metrics["pictures/diversity"]
        self.first = diversity if self.first is None else self.first
        if diversity < COLLAPSE * self.first and not self.warned:
            self.warned = True
            logger.warning(
                "the pictures of a prompt differ %.0f %% as much as at the start", 100 * diversity / self.first
            )
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"queries": self.queries, "first": self.first, "warned": self.warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What was asked stays asked: a rollback does not take queries back."""
        self.queries = max(self.queries, int(state["queries"]))
        self.first, self.warned = state["first"], bool(state["warned"])


class MovingAverage(Learner):
    """An exponential moving average of a policy's weights, in ``average``.

    The decay begins small, (1 + n) / (10 + n) after n updates, so that the start is soon forgotten.
    """

    def __init__(self, policy: DenoisingPolicy, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"a moving average has a decay between 0 and 1, not {decay}")
        self.policy, self.decay, self.updates = policy, decay, 0
        self.average = policy.fork("average")

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.average.copy_from(self.policy, mix=1 - decay)
        self.updates += 1
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average.load_state_dict(state["average"])
        self.updates = int(state["updates"])


class Averaged(TrainingWrapper):
    """A policy that trains, while reports, gates and promotion see the moving average of its weights."""

    def __init__(self, policy: Any, average: MovingAverage) -> None:
        super().__init__(policy)
        self.average = average

    def attempt(self, tasks: Sequence[Task], n: int, *, key: Key, **sampling: Any) -> list[Rollout]:
        rollouts: list[Rollout] = self.policy.act(tasks, n, key=key, **sampling)
        return rollouts

    def evaluated(self) -> Any:
        return self.average.average
