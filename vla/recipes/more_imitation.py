"""Continued imitation beside evolve_vla: the same start goes on copying the same demonstrations.

Paper: none, a method of this project: the control that any gain from acting has to beat.
Faithful: behaviour cloning, as at the start of every run.
Left out: nothing that is known.
Differs: from the start: whole episodes at a constant learning rate. The number of steps, 10 rounds of 100, is the
best of 1 to 10 rounds on the tuning seeds 100 to 102 (55.0 % after it and 54.7 % before, 20 states per task), where
no number of them was better than the start by more than a point; more only harm. It costs less than evolve_vla
therefore.
Labels: demonstrations, imitated before training and in every gradient step.
Expected: not measured yet with this number of steps; after 3,200 it fell from 67.0 to 52.1 [evolve_vla.json:
arms.more_imitation.summary.mean.after] per cent.
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
