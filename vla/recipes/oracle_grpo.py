"""The upper bound of evolve_vla: the same policy, start and budget, rewarded by the simulator's own success.

Paper: SimpleVLA-RL (Li et al., arXiv:2509.09674).
Faithful: GRPO on outcomes of 0 and 1, without a KL; clips of .2 and .28, the mean over an episode's decisions and
then over episodes (its code at 7c51662, read).
Left out: a temperature of 1.6 by default (``--temperature``), and dynamic sampling of groups with a success rate
between .1 and .9 (``--dynamic-sampling --score-range 0.1 0.9``).
Differs: a small policy on the simulator's state, Gaussian by default, with a composite likelihood
(``vla/policy.py``); a group's deviation is ``std_floor`` at least.
Labels: the oracle's success of every training episode; demonstrations, imitated before training.
Expected: on the five default tasks from 67.0 to 85.9 [evolve_vla.json: arms.oracle_grpo.summary.mean.after] per cent.
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
    setting.citation = "SimpleVLA-RL: Li et al., arXiv:2509.09674"
    reward = setting.reward({"success": lambda: success})
    learner = setting.learner(*clip_higher(setting.config, config))
    stage = setting.stage(learner, reward, sampling={"oracle": True})
    setting.read.append("training: the oracle's success of every episode")
    return setting.experiment([stage], reward)
