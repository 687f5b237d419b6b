"""A policy in simulators: tasks in, rollouts out, a progress estimator on board.

The estimator is part of the environment, as in EVOLVE-VLA: it owns the estimate, may end the
episode, and leaves its values on the rollout as the score "progress" (one per chunk), which rewards
read. Nothing here looks at the simulator's success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..envs.pool import Episode, EpisodeRequest, Pool
from ..trainers.randomness import generator
from ..types import Rollout, Task
from .policy import ActionPolicy, word_ids

Floats = NDArray[np.float32]


class Estimator(Protocol):
    """Progress of many episodes at once, updated at chunk ends."""

    def begin(self, instructions: Sequence[str]) -> None:
        """Forget all episodes; row i will be an episode with instruction i."""
        ...

    def update(self, rows: NDArray[np.int64], observations: Floats) -> NDArray[np.bool_]:
        """Take in new observations [n, D] of some rows; True [n] where the episode is over."""
        ...

    def values(self, row: int) -> list[float]:
        """The estimate after each observation of a row, the initial one left out."""
        ...


class RobotActor:
    """Attempts tasks whose ``extra["environment"]`` names a simulator and whose seed fixes the initial state.

    Args:
        horizon: environment steps of tasks that do not say.
        temperature: of sampling; log-probabilities are taken at the same temperature.
    """

    def __init__(
        self,
        policy: ActionPolicy,
        pool: Pool,
        *,
        estimator: Estimator | None = None,
        horizon: int = 150,
        temperature: float = 1.0,
    ) -> None:
        self.policy, self.pool, self.estimator = policy, pool, estimator
        self.horizon, self.temperature = horizon, temperature

    def act(
        self,
        tasks: Sequence[Task],
        n: int,
        *,
        key: tuple[int, ...] = (0,),
        greedy: bool = False,
        stop: bool = True,
        oracle: bool = False,
        render: int | None = None,
    ) -> list[Rollout]:
        """n episodes per task, in task order.

        Args:
            greedy: the most probable action instead of a sample.
            stop: the estimator may end episodes.
            oracle: read success (refused while sealed); ``output.success`` is None otherwise.
            render: size in pixels of the frames to keep at chunk ends.
        """
        asked = [task for task in tasks for _ in range(n)]
        noise = None if greedy else self._noise(asked, n, key)
        session = _Session(self, asked, noise)
        requests = [
            EpisodeRequest(str(task.extra["environment"]), task.seed, task.horizon or self.horizon) for task in asked
        ]
        if self.estimator is not None:
            self.estimator.begin([str(task.prompt) for task in asked])
        watch = None if self.estimator is None else (session.watch if stop else session.look)
        episodes = self.pool.run(requests, session.decide, stop=watch, oracle=oracle, render=render)
        return [session.rollout(row, episode) for row, episode in enumerate(episodes)]

    def _noise(self, asked: Sequence[Task], n: int, key: tuple[int, ...]) -> Tensor:
        """[B, S, C, A] coherent noise, keyed by (key, task id, sample); zeros after an episode's own horizon."""
        chunk, rows = self.policy.model.chunk, []
        for row, task in enumerate(asked):
            chunks = -(-(task.horizon or self.horizon) // chunk)  # drawn alone, so that other tasks do not matter
            rows.append(self.policy.coherent_noise(chunks * chunk, generator(*key, task.id, row % n)))
        noise = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return torch.unflatten(noise, 1, (-1, chunk))

    # what a gate and a checkpoint ask for: the policy's, with the same simulators

    def fork(self, name: str) -> RobotActor:
        settings: dict[str, Any] = {"horizon": self.horizon, "temperature": self.temperature}
        return RobotActor(self.policy.fork(name), self.pool, estimator=self.estimator, **settings)

    def copy_from(self, other: Self, mix: float = 1.0) -> None:
        self.policy.copy_from(other.policy, mix)

    def state_dict(self) -> dict[str, Any]:
        return self.policy.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(state)


class _Session:
    """What one call of ``act`` remembers of its episodes."""

    def __init__(self, actor: RobotActor, asked: Sequence[Task], noise: Tensor | None) -> None:
        self.actor, self.asked, self.noise = actor, asked, noise
        ids = [word_ids(str(task.prompt), actor.policy.model.buckets) for task in asked]
        self.words = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        self.stored: list[list[Tensor]] = [[] for _ in asked]
        self.log_probs: list[list[Tensor]] = [[] for _ in asked]
        self.temperature = 1.0 if noise is None else actor.temperature

    def decide(self, rows: NDArray[np.int64], observations: Floats) -> Floats:
        index = torch.from_numpy(rows)
        fresh = np.array([not self.stored[row] for row in rows.tolist()])
        if self.actor.estimator is not None and fresh.any():
            self.actor.estimator.update(rows[fresh], observations[fresh])  # the initial observations
        noise, before = None, None
        if self.noise is not None:
            done = torch.tensor([len(self.stored[row]) for row in rows.tolist()])
            noise = self.noise[index, done]
            before = torch.where(done[:, None] > 0, self.noise[index, done - 1, -1], torch.nan)
        seen = torch.from_numpy(observations)
        policy = self.actor.policy
        actions, stored, logs = policy.decide(seen, self.words[index], noise, before, self.temperature)
        for row, chunk, log in zip(rows.tolist(), stored, logs, strict=True):
            self.stored[row].append(chunk)
            self.log_probs[row].append(log)
        result: Floats = actions.numpy()
        return result

    def watch(self, rows: NDArray[np.int64], observations: Floats) -> NDArray[np.bool_]:
        assert self.actor.estimator is not None
        return self.actor.estimator.update(rows, observations)

    def look(self, rows: NDArray[np.int64], observations: Floats) -> NDArray[np.bool_]:
        return np.zeros_like(self.watch(rows, observations))

    def rollout(self, row: int, episode: Episode) -> Rollout:
        policy, task = self.actor.policy, self.asked[row]
        chunks = len(episode.actions)
        stored = torch.stack(self.stored[row][:chunks])
        noise = torch.zeros(stored.shape) if self.noise is None else self.noise[row, :chunks]
        observations = torch.from_numpy(episode.observations[:chunks])
        payload = policy.payload(observations, stored, noise, str(task.prompt), self.temperature)
        rollout = policy.rollout(task, episode, payload, torch.cat(self.log_probs[row][:chunks]))
        if self.actor.estimator is not None:
            rollout.scores["progress"] = self.actor.estimator.values(row)
        return rollout
