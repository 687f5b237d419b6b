"""The upper bound of evolve_vla: the same policy, start and budget, rewarded by the simulator's own success.

GRPO on sparse success, as SimpleVLA-RL (arXiv:2509.09674) does it: group-normalised 0/1 outcomes and
clip-higher (0.2 and 0.28, checked against the code's scripts). It reads the oracle for every episode, so
nothing that it reaches was learned without labels; it tells how much of that a learned reward reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..setting import RobotConfig
from . import evolve_vla

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.run_folder import RunFolder


@dataclass(frozen=True)
class Config(RobotConfig):
    """Numbers without a source are evolve_vla's."""

    lr: float = evolve_vla.Config.lr
    epochs: int = evolve_vla.Config.epochs
    minibatch: int = evolve_vla.Config.minibatch
    clip_low: float = 0.2
    clip_high: float = 0.28
    std_floor: float = evolve_vla.Config.std_floor


def debug() -> Config:
    """Two iterations in seconds."""
    tiny = {"iterations": 2, "clone_steps": 30, "horizon": 40, "states": 1, "group": 4, "eval_episodes": 2, "videos": 0}
    return Config(tasks=("reach-v3", "drawer-close-v3"), **tiny)  # type: ignore[arg-type]


def success(episodes: Sequence[Any], **columns: Any) -> list[float]:
    """1.0 for an episode in which the simulator saw success, else 0.0."""
    return [float(bool(episode.success)) for episode in episodes]


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.advantages import grpo
    from ...trainers.curricula import Uniform
    from ...trainers.learner import Optimisation, PolicyLearner
    from ...trainers.loop import Stage
    from ...trainers.objectives import PPOClip
    from ..setting import start

    setting = start(config, folder)
    learner = PolicyLearner(
        setting.policy,
        PPOClip(config.clip_low, config.clip_high),
        Optimisation(config.lr, config.epochs, setting.minibatches(config.minibatch), seed=config.seed),
        advantage=grpo(std_floor=config.std_floor),
    )
    stage = Stage(
        steps=config.iterations,
        actor=setting.actor(),
        curriculum=Uniform(setting.sources(), seed=config.seed),
        reward=success,
        learners={"policy": learner},
        tasks_per_step=config.states * len(setting.names),
        group_size=config.group,
        sampling={"oracle": True},
    )
    return setting.experiment([stage], success, "training reads the oracle's success of every episode")
