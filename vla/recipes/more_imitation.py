"""Continued imitation beside evolve_vla: the same start goes on copying the same demonstrations.

The control that any gain from acting has to beat: no episode is run, no reward is read, only gradient
steps of behaviour cloning are added (supervised fine-tuning; no paper).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...families import of_family
from ...trainers.config import DYNAMIC_SAMPLING, NO_GATE, POLICY_GRADIENT
from ..setting import RobotConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(RobotConfig):
    """Gradient steps instead of episodes; fewer CPU seconds than evolve_vla takes (see docs/results.md)."""

    SMALL: ClassVar[Mapping[str, Any]] = {"lr": 3e-4}
    TINY: ClassVar[Mapping[str, Any]] = {"epochs": 4}
    FIXED: ClassVar[tuple[str, ...]] = (
        *POLICY_GRADIENT,
        *NO_GATE,
        *DYNAMIC_SAMPLING,
        *("gate_states", "rewards", "tasks_per_step", "group_size", "temperature", "curriculum"),
        *("sft_coef", "sft_batch_size", "minibatches", "batch_size"),
    )

    epochs: int = 100
    """Passes over all demonstrations per round, a gradient step each."""
    max_steps: int = 10
    tasks_per_step: int = 1
    group_size: int = 1


@of_family()
def nothing(rollouts: Sequence[Any], **columns: Any) -> list[float]:
    """Every demonstration counts the same."""
    return [1.0] * len(rollouts)


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.actors import Demonstrations
    from ...trainers.objectives import WeightedImitation

    setting = start(config, folder)
    setting.replays = True
    actor: Any = Demonstrations(setting.actor(), setting.encoded)
    stage = setting.stage(setting.learner(WeightedImitation(), anchors=None), nothing, actor=actor)
    return setting.experiment([stage], nothing)
