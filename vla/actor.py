"""A policy in simulators: tasks in, rollouts out, a progress estimator on board.

The estimator is part of the environment, as in EVOLVE-VLA: it owns the estimate, may end the
episode, and leaves its values on the rollout as the score "progress" (one per chunk), which rewards
read. Nothing here looks at the simulator's success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..envs.pool import Episode, EpisodeRequest, Pool
from ..envs.simulator import View
from ..errors import UsageError
from ..trainers.actors import SystemWrapper
from ..trainers.randomness import seed_of
from ..types import Key, Mode, Rollout, Task
from .chunk_policy import ChunkPolicy, Seen

Floats = NDArray[np.float32]
Frames = Mapping[str, NDArray[np.uint8]]
"""Camera -> [n, H, W, 3] uint8."""


class Estimator(Protocol):
    """Progress of many episodes at once, updated at chunk ends."""

    def begin(self, instructions: Sequence[str]) -> None:
        """Forget all episodes; row i will be an episode with instruction i."""
        ...

    def update(self, rows: NDArray[np.int64], observations: NDArray[Any]) -> NDArray[np.bool_]:
        """Take in new observations [n, D] of some rows; True [n] where the episode is over.

        An estimator whose ``model.sees`` is "frames" is given frames [n, H, W, 3] uint8 of one camera instead.
        """
        ...

    def values(self, row: int) -> list[float]:
        """The estimate after each observation of a row, the initial one left out."""
        ...


class RobotActor(SystemWrapper):
    """A policy in simulators: a task's ``extra["environment"]`` names one, and its seed fixes the initial state.

    The estimator is there in training alone: in evaluate mode it neither watches nor ends an episode.

    Args:
        horizon: environment steps of tasks that do not say.
        temperature: of sampling; log-probabilities are taken at the same temperature.
        view: how frames are taken for an estimator that sees them; None is the policy's view, or the usual one. The
            estimator sees its first camera.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        pool: Pool,
        *,
        estimator: Estimator | None = None,
        horizon: int = 150,
        temperature: float = 1.0,
        view: View | None = None,
    ) -> None:
        self.policy, self.pool, self.estimator = policy, pool, estimator
        self.horizon, self.temperature, self.view = horizon, temperature, view

    def act(
        self,
        tasks: Sequence[Task],
        n: int,
        *,
        key: Key = (0,),
        mode: Mode = "train",
        greedy: bool = False,
        oracle: bool = False,
        rewards: bool = False,
        render: View | None = None,
    ) -> list[Rollout]:
        """n episodes per task, in task order.

        Args:
            greedy: the most probable action instead of a sample.
            oracle: read success (refused while sealed); ``output.success`` is None otherwise.
            rewards: read what each chunk earned in the environment's own terms, ``output.rewards``; with ``oracle``.
            render: how to take the frames to keep at chunk ends.

        Raises:
            UsageError: the policy's chunks do not suit an environment; or one run is to take frames in two ways.
        """
        asked = [task for task in tasks for _ in range(n)]
        self._check(asked)
        seeds = [seed_of(*key, task.id, row % n) for row, task in enumerate(asked)]
        watching = self.estimator is not None and mode == "train"
        session = _Session(self, asked, seeds, greedy, watching)
        requests = [
            EpisodeRequest(str(task.extra["environment"]), task.seed, task.horizon or self.horizon) for task in asked
        ]
        if watching and self.estimator is not None:
            self.estimator.begin([str(task.prompt) for task in asked])
        watch = session.watch if watching else None
        how = {"render": self._view(render), "see": self._sees_frames}
        episodes = self.pool.run(requests, session.decide, stop=watch, oracle=oracle, rewards=rewards, **how)  # type: ignore[arg-type]
        return [session.rollout(row, episode) for row, episode in enumerate(episodes)]

    def bare(self) -> RobotActor:
        """Itself: a robot policy acts in simulators alone."""
        return self

    @property
    def estimator_sees_frames(self) -> bool:
        model = getattr(self.estimator, "model", None)
        return getattr(model, "sees", "states") == "frames"

    @property
    def _sees_frames(self) -> bool:
        return self.policy.sees == "frames" or self.estimator_sees_frames

    def _view(self, render: View | None) -> View | None:
        """The one way in which this run takes frames: all cameras that someone names, the estimator's first."""
        policy = self.policy.view if self.policy.sees == "frames" else None
        estimator = (self.view or policy or render or View()) if self.estimator_sees_frames else None
        views = [view for view in (estimator, policy, render) if view is not None]
        ways = dict.fromkeys(replace(view, cameras=()) for view in views)
        if len(ways) > 1:
            raise UsageError(f"one run takes frames in one way, not as {' and as '.join(map(str, ways))}")
        cameras = tuple(dict.fromkeys(camera for view in views for camera in view.cameras))
        return None if not views else replace(views[0], cameras=cameras)

    def _check(self, asked: Sequence[Task]) -> None:
        policy = self.policy
        for name in dict.fromkeys(str(task.extra["environment"]) for task in asked):
            size = self.pool.sizes(name)[1]
            if (policy.chunk, policy.action_size) != (self.pool.chunk, size):
                has = f"chunks of {policy.chunk} actions of size {policy.action_size}"
                raise UsageError(f"{policy.name} makes {has}; {name} takes chunks of {self.pool.chunk}, size {size}")


class _Session:
    """What one call of ``act`` remembers of its episodes."""

    def __init__(
        self, actor: RobotActor, asked: Sequence[Task], seeds: Sequence[int], greedy: bool, watching: bool
    ) -> None:
        self.actor, self.asked, self.seeds, self.watching = actor, asked, seeds, watching
        policy = actor.policy
        self.chunks = [max(1, -(-(task.horizon or actor.horizon) // policy.chunk)) for task in asked]
        # An episode's random numbers are its own, so that other tasks do not matter.
        randoms = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.randomness = None if greedy else policy.begin(randoms, self.chunks)
        self.stored: dict[str, Tensor] = {}
        self.log_probs: Tensor | None = None
        self.decided = np.zeros(len(asked), np.int64)
        self.temperature = 1.0 if greedy else actor.temperature

    def decide(self, rows: NDArray[np.int64], observations: Floats, frames: Frames | None = None) -> Floats:
        fresh = self.decided[rows] == 0
        if self.watching and fresh.any():  # the initial observations
            first = None if frames is None else {camera: film[fresh] for camera, film in frames.items()}
            self.watch(rows[fresh], observations[fresh], first)
        randomness = None if self.randomness is None else [self.randomness[row] for row in rows.tolist()]
        return self._decide(self._seen(rows, observations, frames), rows, randomness)

    def _decide(self, seen: Seen, rows: NDArray[np.int64], randomness: Sequence[Any] | None) -> Floats:
        """Ask the policy, and remember what it chose for each row."""
        choice = self.actor.policy.choose(seen, randomness, self.temperature)
        samples = self.randomness is not None and not self.actor.policy.capabilities & {"exact", "composite"}
        places = torch.from_numpy(rows), torch.from_numpy(self.decided[rows])
        for name, tensor in choice.stored.items():
            if name not in self.stored:
                self.stored[name] = self._room(tensor)
            self.stored[name][places] = tensor
        if choice.log_probs is not None and not samples:
            if self.log_probs is None:
                self.log_probs = self._room(choice.log_probs)
            self.log_probs[places] = choice.log_probs
        self.decided[rows] += 1
        result: Floats = choice.actions.numpy()
        return result

    def _room(self, tensor: Tensor) -> Tensor:
        """[B, S, ...] for what was stored [n, ...] of one chunk."""
        return tensor.new_zeros(len(self.asked), max(self.chunks), *tensor.shape[1:])

    def _seen(self, rows: NDArray[np.int64], observations: Floats, frames: Frames | None) -> Seen:
        """What the policy is given of rows that need not be of one environment."""
        policy, tasks = self.actor.policy, [self.asked[row] for row in rows.tolist()]
        if policy.sees == "frames":
            observations = np.stack([policy.felt(t, o[None])[0] for t, o in zip(tasks, observations, strict=True)])
        return Seen([str(t.prompt) for t in tasks], torch.from_numpy(observations), policy.looked_at(frames or {}))

    def _after(self, row: int, episode: Episode) -> Seen:
        """What the policy is given of the state after the last chunk."""
        frames = {camera: film[-1:] for camera, film in (episode.images or {}).items()}
        return self._seen(np.full(1, row), episode.observations[-1:], frames)

    def watch(self, rows: NDArray[np.int64], observations: Floats, frames: Frames | None = None) -> NDArray[np.bool_]:
        assert self.actor.estimator is not None
        if not self.actor.estimator_sees_frames:
            return self.actor.estimator.update(rows, observations)
        assert frames is not None
        return self.actor.estimator.update(rows, next(iter(frames.values())))

    def rollout(self, row: int, episode: Episode) -> Rollout:
        """An episode as a rollout; one that was over before it began has one chunk, of which nothing was executed."""
        task, policy = self.asked[row], self.actor.policy
        chunks = max(1, len(episode.actions))
        frames = {camera: film[:chunks] for camera, film in (episode.images or {}).items()}
        seen = self._seen(np.full(chunks, row), episode.observations[:chunks], frames)
        if not self.decided[row]:
            self._decide(seen, np.array([row]), None)
        stored = {name: tensor[row, :chunks].clone() for name, tensor in self.stored.items()}
        step = torch.arange(chunks * policy.chunk).view(chunks, policy.chunk)
        rollout: Rollout = policy.rollout(
            task,
            episode,
            seen,
            stored,
            None if self.log_probs is None else self.log_probs[row, :chunks].flatten(),
            temperature=self.temperature,
            seed=self.seeds[row],
            executed=step < episode.steps,
            last=self._after(row, episode) if "values" in policy.capabilities else None,
            truncated=not (episode.terminated or episode.stopped or episode.fault),
        )
        if self.watching and self.actor.estimator is not None:
            rollout.scores["progress"] = self.actor.estimator.values(row)
        return rollout
