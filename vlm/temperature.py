"""Sampling temperature as something that is learned: chosen on validation questions, from time to time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..trainers.actors import TrainingWrapper
from ..trainers.contracts import Learner
from ..trainers.scoring import score, total_of
from ..types import Key, Rollout, Task


class TwoSided(Protocol):
    """A reward of a right answer, and one of the process that led to it (None without one)."""

    right: Any
    sound: Any


class Temperature(Learner):
    """A learner of one number: the temperature with the highest Reward-Pass@2 on validation questions.

    Args:
        values: what is tried, every so many updates; none keeps ``start``.
    """

    def __init__(
        self,
        policy: Any,
        validation: Sequence[Task],
        reward: TwoSided,
        values: Sequence[float],
        *,
        start: float,
        every: int,
        seed: int = 0,
    ) -> None:
        self.policy, self.validation, self.reward = policy, validation, reward
        self.values, self.every, self.seed = tuple(values), every, seed
        self.value, self.updates = start, 0

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        if self.values and self.updates % self.every == 0:
            passes = {value: self.reward_pass(value) for value in self.values}
            self.value = max(passes, key=lambda value: passes[value])
        self.updates += 1
        return {"answers/temperature": self.value}

    def reward_pass(self, temperature: float, k: int = 2, samples: int = 8) -> float:
        """Share of questions with a right answer among the k of ``samples`` whose process reward is highest."""
        key = (self.seed, 10**6, self.updates)
        rollouts = self.policy.act(self.validation, samples, key=key, temperature=temperature)
        right = _totals(rollouts, self.reward.right)
        sound = [0.0] * len(right) if self.reward.sound is None else _totals(rollouts, self.reward.sound)
        hits = 0
        for first in range(0, len(rollouts), samples):
            rows = sorted(range(first, first + samples), key=lambda row: -sound[row])[:k]
            hits += any(right[row] == 1.0 for row in rows)
        return hits / len(self.validation)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value, self.updates = float(state["value"]), int(state["updates"])


def _totals(rollouts: Sequence[Rollout], reward: Any) -> list[float]:
    score(rollouts, reward)
    return [total_of(rollout) or 0.0 for rollout in rollouts]


class Tempered(TrainingWrapper):
    """The policy, sampling at the temperature that was last chosen; what is imitated is imitated at temperature 1."""

    def __init__(self, policy: Any, tuner: Temperature) -> None:
        super().__init__(policy)
        self.tuner = tuner

    def attempt(self, tasks: Sequence[Task], n: int, *, key: Key, **sampling: Any) -> list[Rollout]:
        rollouts: list[Rollout] = self.policy.act(tasks, n, key=key, **{**sampling, "temperature": self.tuner.value})
        for rollout in rollouts:
            others = {name: tensor for name, tensor in rollout.payload.items() if name != "temperature"}
            rollout.payload = {**others, "temperature": rollout.payload["temperature"] * 0 + 1}
        return rollouts
