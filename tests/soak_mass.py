"""The point mass for soaks: from some starts its simulator hangs, and its time limit is short."""

from __future__ import annotations

import time
from typing import Any

import gymnasium

from autotelic.envs.simulator import EnvSpec, register

from .point_mass import INSTRUCTION, PointMass, arrived, straight

gymnasium.register("test/SoakMass-v0", "tests.soak_mass:SoakMass")
NAME = "soak/point-mass"
ONE_IN = 200


class SoakMass(PointMass):
    """Hangs in the third step from one start in ``ONE_IN``."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observation = super().reset(seed=seed, options=options)
        self.steps, self.hangs = 0, int(1e6 * abs(self.mark[0])) % ONE_IN == 0
        return observation

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.hangs and self.steps == 3:
            time.sleep(60)
        return super().step(action)


def register_mass() -> None:
    register(NAME, EnvSpec("test/SoakMass-v0", INSTRUCTION, 8, arrived, expert=straight, timeout=2.0))
