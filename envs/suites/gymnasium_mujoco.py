"""Gymnasium's MuJoCo environments (v5) and two of classic control, which need nothing but Gymnasium and MuJoCo.

Most of them have a reward and no success. Here that is an episode of full length whose return is what Gymnasium's
registry calls solved (``reward_threshold``). Where it names none, or one that no episode can reach, TASKS says what it
is instead. All of it is judged at the end, so it is not latched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..simulator import ACTION, DRAWN, IMAGES, STATE, EnvSpec, Feature, Outcome, register
from .criteria import Return

CITATION = "Gymnasium: Towers et al., arXiv:2407.17032"


def pushed(outcome: Outcome) -> bool:
    """Pusher's object lies within 5 cm of the goal on the table, as in MetaWorld's push."""
    return bool(np.linalg.norm(outcome.observation[17:19] - outcome.observation[20:22]) < 0.05)


def stands(outcome: Outcome) -> bool:
    """The torso is a metre above the ground or more, where Humanoid-v5 begins to call a humanoid healthy."""
    return bool(outcome.observation[0] >= 1.0)


@dataclass(frozen=True)
class Task:
    """One environment: sizes of observation and action, steps of an episode and per second, the action's bound."""

    instruction: str
    sizes: tuple[int, int]
    steps: int
    fps: int
    success: float | Callable[[Outcome], bool]
    bound: float = 1
    layout: tuple[tuple[str, slice], ...] = ()
    felt: int | None = None
    """Numbers at the beginning of an observation that a robot feels of itself; None is all of them."""


PUSHER = (("hand", slice(14, 17)), ("object", slice(17, 20)), ("goal", slice(20, 23)))

TASKS = {
    "Ant-v5": Task("walk forward on four legs", (105, 8), 1000, 20, 6000),
    "HalfCheetah-v5": Task("run forward", (17, 6), 1000, 20, 4800),
    "Hopper-v5": Task("hop forward on one leg", (11, 3), 1000, 125, 3800),
    # RL Baselines3 Zoo's benchmark.md: SAC has 6,232 +- 280 after 2 million steps, in v3
    "Humanoid-v5": Task("walk forward on two legs", (348, 17), 1000, 67, 6000, 0.4),
    "HumanoidStandup-v5": Task("stand up", (348, 17), 1000, 67, stands, 0.4),
    "InvertedDoublePendulum-v5": Task("keep both poles upright", (9, 1), 1000, 20, 9100),
    "InvertedPendulum-v5": Task("keep the pole upright", (4, 1), 1000, 25, 950, 3),
    "Pusher-v5": Task("push the cylinder to the goal", (23, 7), 100, 20, pushed, 2, PUSHER, 17),
    "Reacher-v5": Task("move the fingertip to the goal", (10, 2), 50, 50, -3.75, felt=4),
    "Swimmer-v5": Task("swim forward", (8, 2), 1000, 25, 360),
    # the same file: PPO has 3,479 +- 822 after a million steps, in v3
    "Walker2d-v5": Task("walk forward on two legs", (17, 6), 1000, 125, 3400),
    "CartPole-v1": Task("keep the pole upright", (4, 2), 500, 50, 475),
    # the same file: PPO has -172 +- 104 after 100,000 steps, and no other algorithm below -213
    "Pendulum-v1": Task("swing the pole up and keep it there", (3, 1), 200, 30, -200, 2),
}

for _name, _task in TASKS.items():
    _seen, _done = _task.sizes
    _bounds = () if _name == "CartPole-v1" else (-_task.bound, _task.bound)  # its two numbers are no amounts
    register(
        f"gymnasium/{_name}",
        EnvSpec(
            id=_name,
            instruction=_task.instruction,
            max_episode_steps=_task.steps,
            success=_task.success if callable(_task.success) else Return(_task.success, _task.steps),
            features={STATE: Feature((_seen,)), IMAGES + DRAWN: Feature(), ACTION: Feature((_done,), *_bounds)},
            fps=_task.fps,
            chunk=1,  # published results decide at every step
            title=_name,
            citation=CITATION,
            layout=dict(_task.layout),
            proprioception=slice(0, _seen if _task.felt is None else _task.felt),
            latched=False,
        ),
    )
