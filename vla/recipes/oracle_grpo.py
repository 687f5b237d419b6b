"""The upper bound of evolve_vla: the same policy, start and budget, rewarded by the simulator's own success.

GRPO on sparse success, as SimpleVLA-RL (arXiv:2509.09674) does it: group-normalised 0/1 outcomes and
clip-higher (0.2 and 0.28, checked against the code's scripts); without its dynamic sampling, its mean over tokens and
its temperature. It reads the oracle for every episode, so
nothing that it reaches was learned without labels; it tells how much of that a learned reward reaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...families import GROUND_TRUTH, of_family
from ...trainers.config import NO_GATE
from ..grpo import GRPOFields, clip_higher
from ..setting import RobotConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(GRPOFields, RobotConfig):
    """Numbers without a source are evolve_vla's."""

    SMALL: ClassVar[Mapping[str, Any]] = {"batch_size": 40}
    FIXED: ClassVar[tuple[str, ...]] = (*NO_GATE, "gate_states")
    OWN: ClassVar[Mapping[str, tuple[str, ...]]] = {"rewards": ("success",)}

    epochs: int = 2
    rewards: tuple[str, ...] = ("success",)
    """success (the simulator's), NAME:WEIGHT, package.module:NAME or FILE.py:NAME; several are weighted and added."""


@of_family(GROUND_TRUTH)
def success(episodes: Sequence[Any], **columns: Any) -> list[float]:
    """1.0 for an episode in which the simulator saw success, else 0.0."""
    return [float(bool(episode.success)) for episode in episodes]


def build(config: Config, folder: RunFolder) -> Experiment:
    setting = start(config, folder)
    reward = setting.reward({"success": lambda: success})
    learner = setting.learner(*clip_higher(setting.config, config))
    stage = setting.stage(learner, reward, sampling={"oracle": True})
    setting.read.append("training: the oracle's success of every episode")
    return setting.experiment([stage], reward)
