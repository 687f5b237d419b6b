"""The point in the plane, in an environment that pays for coming nearer to the mark and ends there."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from autotelic.envs.simulator import EnvSpec, Outcome, register

from .point_mass import INSTRUCTION, PointMass, arrived, distance, straight

gymnasium.register("test/PayingMass-v0", "tests.paying_mass:PayingMass")
gymnasium.register("test/ChoosingMass-v0", "tests.paying_mass:ChoosingMass")
NAME, CHOOSING = "paying-mass", "choosing-mass"


class PayingMass(PointMass):
    """Pays what the distance falls by, and ends within a fifth of the mark."""

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        before = distance(self.seen())
        super().step(action)
        after = distance(self.seen())
        return self.seen(), before - after, after < 0.2, False, {}


class ChoosingMass(PayingMass):
    """One of four ways by a quarter."""

    action_space = gymnasium.spaces.Discrete(4)  # type: ignore[assignment]

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        return super().step(np.array([(1, 0), (-1, 0), (0, 1), (0, -1)][int(action)]))


def chosen(env: Any, observation: NDArray[np.float32]) -> NDArray[np.float32]:
    """The way that leads nearer along the longer axis."""
    x, y = observation[2:] - observation[:2]
    way = (0 if x > 0 else 1) if abs(x) > abs(y) else (2 if y > 0 else 3)
    return np.where(np.arange(4) == way, 1.0, -1.0).astype(np.float32)


def arrives(outcome: Outcome) -> bool:
    return arrived(outcome)


def register_paying() -> None:
    register(NAME, EnvSpec("test/PayingMass-v0", INSTRUCTION, 12, arrives, expert=straight, chunk=2))
    register(CHOOSING, EnvSpec("test/ChoosingMass-v0", INSTRUCTION, 16, arrives, expert=chosen, chunk=1))
