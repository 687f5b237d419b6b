"""A point in the plane that is to go to a mark: the smallest robot, for tests of the action policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from autotelic.envs.pool import Pool
from autotelic.envs.simulator import EnvSpec, Outcome, register
from autotelic.types import Task

gymnasium.register("test/PointMass-v0", "tests.point_mass:PointMass")
NAME = "point-mass"
INSTRUCTION = "go to the mark"


class PointMass(gymnasium.Env[Any, Any]):
    """Observation [4]: where the point is, starting at the origin, and where the mark is, at distance 1.

    An action [2] moves the point by up to a quarter per axis.
    """

    observation_space = gymnasium.spaces.Box(-10, 10, (4,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[Any], dict[str, Any]]:
        super().reset(seed=seed)
        angle = self.np_random.uniform(0, 2 * np.pi)
        self.point, self.mark = np.zeros(2), np.array([np.cos(angle), np.sin(angle)])
        return self.seen(), {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        self.point = self.point + 0.25 * action
        return self.seen(), 0.0, False, False, {}

    def seen(self) -> NDArray[Any]:
        return np.concatenate([self.point, self.mark]).astype(np.float32)


def arrived(outcome: Outcome) -> bool:
    return distance(outcome.observation) < 0.2


def straight(env: Any, observation: NDArray[np.float32]) -> NDArray[np.float32]:
    return (observation[2:] - observation[:2]) * 2


def distance(observation: NDArray[np.float32]) -> float:
    """From the point to the mark."""
    return float(np.linalg.norm(observation[:2] - observation[2:]))


def register_point_mass() -> None:
    register(NAME, EnvSpec("test/PointMass-v0", INSTRUCTION, 8, arrived, expert=straight))


@contextmanager
def simulators(chunk: int = 4, lanes: int = 256) -> Iterator[Pool]:
    """A pool in this process."""
    register_point_mass()
    with Pool([NAME], chunk=chunk, workers=0, lanes=lanes) as pool:
        yield pool


def point_task(seed: int, horizon: int = 8) -> Task:
    return Task(f"{NAME}/{seed}", INSTRUCTION, category=NAME, seed=seed, horizon=horizon, extra={"environment": NAME})
