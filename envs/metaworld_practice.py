"""MetaWorld's scripted experts gone astray, for critics that learn from other tasks.

The experts' chunks are disturbed in the ways in which a policy that imitated little goes wrong: it takes
things to be where they are not, it shakes, it stops half-way.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metaworld_classes import ENV_POLICY_MAP

STEP = 0.01
"""Metres that a hand moves per step at full speed."""


class Astray:
    """One episode's disturbed expert: an observation [21] in, a chunk of actions [C, 4] out.

    Within a chunk it plans ahead: the hand is taken to move as told, and everything else to stand still.
    """

    def __init__(self, task: str, seed: int, horizon: int, chunk: int) -> None:
        random = np.random.default_rng(seed)
        expert: Any = ENV_POLICY_MAP[task]
        self.expert, self.chunk, self.random = expert(), chunk, random
        way = random.choice(["clean", "mistaken", "shaking", "stopping", "mixed"], p=[0.15, 0.35, 0.2, 0.15, 0.15])
        self.shake = {"shaking": random.uniform(0.3, 1.5), "mixed": random.uniform(0.1, 0.8)}.get(way, 0.05)
        wrong = 0.01 * 10 ** random.uniform(0, 1) if way in ("mistaken", "mixed") else 0.0
        self.mistakes = wrong * random.standard_normal((3, 3)) * (1, 1, 0.5)
        self.stop = random.uniform(0.05, 0.5) * horizon if way == "stopping" else horizon
        self.noise = np.zeros(4)
        self.steps = 0

    def __call__(self, seen: NDArray[np.float32]) -> NDArray[np.float32]:
        believed = seen.astype(np.float64)
        for mistake, where in zip(self.mistakes, (4, 11, 18), strict=True):
            if np.abs(seen[where : where + 3]).max() > 0:  # absent things stay absent
                believed[where : where + 3] += mistake
        actions = []
        for _ in range(self.chunk):
            self.noise = 0.9 * self.noise + 0.19**0.5 * self.random.standard_normal(4) * self.shake
            action = self.noise.copy()
            if self.steps < self.stop:
                full = np.concatenate([believed[:18], believed[:18], believed[18:]])
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    action += np.clip(self.expert.get_action(full), -1, 1)
            actions.append(np.clip(action, -1, 1))
            believed[:3] += STEP * actions[-1][:3]
            self.steps += 1
        return np.asarray(actions, np.float32)
