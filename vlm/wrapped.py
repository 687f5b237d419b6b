"""Actor and learner wrappers: labels in place of answers, and dropout while a policy imitates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

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


class WithDropout(Learner):
    """A learner in training mode: imitation of few demonstrations needs dropout, and on-policy objectives forbid it."""

    sees_own_rollouts_only = True

    def __init__(self, policy: Any, learner: Any) -> None:
        self.policy, self.learner = policy, learner

    @property
    def players(self) -> Players:  # type: ignore[override]
        players: Players = self.learner.players
        return players

    def check(self, group_size: int) -> None:
        self.learner.check(group_size)

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        self.policy.module.train()
        try:
            with torch.random.fork_rng():
                torch.manual_seed(seed_of("dropout", self.learner.optimisation.seed, self.learner.updates))
                metrics: dict[str, float] = self.learner.update(rollouts)
        finally:
            self.policy.module.eval()
        return metrics

    def repair(self, verdict: Verdict) -> dict[str, float]:
        metrics: dict[str, float] = self.learner.repair(verdict)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.learner.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
