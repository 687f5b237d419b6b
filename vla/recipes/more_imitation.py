"""Continued imitation beside evolve_vla: the same start goes on copying the same demonstrations.

The control that any gain from acting has to beat: no episode is run, no reward is read, only gradient
steps of behaviour cloning are added (supervised fine-tuning; no paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..setting import RobotConfig

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.run_folder import RunFolder


@dataclass(frozen=True)
class Config(RobotConfig):
    """Gradient steps instead of episodes; fewer CPU seconds than evolve_vla takes (see docs/results.md)."""

    lr: float = 3e-4
    steps: int = 200
    """Gradient steps per iteration."""


def debug() -> Config:
    """Two iterations in seconds."""
    tiny = {"iterations": 2, "clone_steps": 30, "horizon": 40, "steps": 4, "eval_episodes": 2, "videos": 0}
    return Config(tasks=("reach-v3", "drawer-close-v3"), **tiny)  # type: ignore[arg-type]


def nothing(rollouts: Sequence[Any], **columns: Any) -> list[float]:
    """Every demonstration counts the same."""
    return [1.0] * len(rollouts)


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.actors import Demonstrations
    from ...trainers.curricula import Uniform
    from ...trainers.learner import Optimisation, PolicyLearner
    from ...trainers.loop import Stage
    from ...trainers.objectives import WeightedImitation
    from ..setting import start

    setting = start(config, folder)
    optimisation = Optimisation(config.lr, epochs=config.steps, minibatches=1, seed=config.seed)
    stage = Stage(
        steps=config.iterations,
        actor=Demonstrations(setting.actor(), setting.encoded),
        curriculum=Uniform(setting.sources(), seed=config.seed),
        reward=nothing,
        learners={"policy": PolicyLearner(setting.policy, WeightedImitation(), optimisation)},
        tasks_per_step=1,
        group_size=1,
    )
    return setting.experiment([stage], nothing, "gate_labels: none")
