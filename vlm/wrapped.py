"""Actor and learner wrappers: labels in place of answers, dropout while a policy imitates, and votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import UsageError
from ..numbers import rows_by_key
from ..trainers.actors import TrainingWrapper
from ..trainers.contracts import Learner
from ..trainers.randomness import seed_of
from ..types import Key, Players, Rollout, Task, Verdict
from .verification import told


class Labels(TrainingWrapper):
    """Gives the right answers of its tasks, without a trace, instead of answering."""

    def attempt(self, tasks: Sequence[Task], n: int, *, key: Key, **sampling: Any) -> list[Rollout]:
        encoded: list[Rollout] = self.policy.encode(tasks, [f"= {told(task)}" for task in tasks])
        return encoded


class Around(Learner):
    """A learner that stands around another one."""

    sees_own_rollouts_only = True

    def __init__(self, learner: Any) -> None:
        self.learner = learner

    @property
    def players(self) -> Players:  # type: ignore[override]
        players: Players = self.learner.players
        return players

    @property
    def policy(self) -> Any:
        return self.learner.policy

    def check(self, group_size: int) -> None:
        self.learner.check(group_size)

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        metrics: dict[str, float] = self.learner.update(rollouts)
        return metrics

    def repair(self, verdict: Verdict) -> dict[str, float]:
        metrics: dict[str, float] = self.learner.repair(verdict)
        return metrics

    def slow_down(self, factor: float) -> None:
        self.learner.slow_down(factor)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.learner.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)


class WithDropout(Around):
    """A learner in training mode: imitation of few demonstrations needs dropout, and on-policy objectives forbid it."""

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        self.policy.module.train()
        try:
            with torch.random.fork_rng():
                torch.manual_seed(seed_of("dropout", self.learner.optimisation.seed, self.learner.updates))
                return super().update(rollouts)
        finally:
            self.policy.module.eval()


class FirstOfGroup(Around):
    """A learner of the first ``size`` attempts of each group alone: the others have voted, and are not learned from."""

    def __init__(self, learner: Any, size: int) -> None:
        super().__init__(learner)
        self.size = size

    def check(self, group_size: int) -> None:
        if group_size < self.size:
            raise UsageError(f"--votes {group_size} are fewer than --group-size {self.size}, which is learned from")
        self.learner.check(self.size)

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        places = rows_by_key(rollout.group_key for rollout in rollouts).values()
        first = sorted(place for rows in places for place in rows[: self.size])
        return super().update([rollouts[place] for place in first])
