"""Answers are compared with the others to the same question, and what was better than them becomes likelier: GRPO.

GRPO (DeepSeekMath, arXiv:2402.03300, section 4.1), and by ``--loss`` Dr.GRPO (arXiv:2503.20783), DAPO's loss
(arXiv:2503.14476) and GSPO (arXiv:2507.18071). None was checked against its paper; clip widths are those recalled in
``trainers.objectives.PPOClip``. Groups without spread are left out; with the demonstrations replayed, no KL.

Learning rate, entropy bonus and replay were chosen on another split. Figures: docs/results.md, with rejection sampling
and continued imitation beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..setting import TINY, SpeakingConfig

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.run_folder import RunFolder

Loss = Literal["grpo", "dr_grpo", "dapo", "gspo"]


@dataclass(frozen=True)
class Config(SpeakingConfig):
    """Numbers without a source were chosen on the tuning split."""

    loss: Loss = "grpo"
    """How a group's rewards become a gradient."""
    std_floor: float = 0.1
    """Smallest standard deviation that a group's rewards are divided by (grpo, dapo, gspo)."""


def debug() -> Config:
    """Two rounds in seconds."""
    return Config(**TINY)


def build(config: Config, folder: RunFolder) -> Experiment:
    from ..setting import start

    setting = start(config)
    reward = setting.reward()
    objective, advantage = loss_of(config)
    learner = setting.learner(setting.regularised(objective), advantage=advantage)
    return setting.experiment([setting.stage(learner, reward, proxy=reward)])


def loss_of(config: Any) -> tuple[Any, Any]:
    """The objective and the advantage of a published variant."""
    from ...trainers.advantages import dr_grpo, grpo
    from ...trainers.objectives import PPOClip
    from ..setting import is_small

    normalised = grpo(config.std_floor)
    if config.loss == "dr_grpo":
        longest = config.horizon or (14 if is_small(config) else 256)
        return PPOClip(aggregate=longest), dr_grpo()
    if config.loss == "dapo":
        return PPOClip(clip_high=0.28, aggregate="decision"), normalised
    if config.loss == "gspo":
        return PPOClip(3e-4, 4e-4, level="sequence"), normalised
    return PPOClip(), normalised
