"""Answers are compared with the others to the same question, and what was better than them becomes likelier: GRPO.

GRPO (DeepSeekMath, arXiv:2402.03300, section 4.1), and by ``--objective`` Dr.GRPO (arXiv:2503.20783), DAPO's loss
(arXiv:2503.14476), GSPO (arXiv:2507.18071) or any other. None was checked against its paper; clip widths are those
recalled in ``trainers.objectives.PPOClip``. By default a round is one gradient step, in which nothing is clipped and
GSPO's gradient is GRPO's: give ``--minibatches`` or ``--epochs`` above 1 for ratios to matter. Left out: DAPO's
refilling and its shaping of overlong answers. Added: demonstrations are imitated in every gradient step
(``--sft-coef``), and an entropy bonus with the default model.

Learning rate, entropy bonus and weight of imitation were chosen on another split. Figures: docs/results.md, with
rejection sampling and continued imitation beside it; they were measured before groups without spread counted in the
divisor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..setting import LanguageConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(LanguageConfig):
    """Numbers without a source were chosen on the tuning split."""

    objective: str = "grpo"


def build(config: Config, folder: RunFolder) -> Experiment:
    setting = start(config, folder)
    reward = setting.reward()
    return setting.experiment([setting.stage(setting.learner(), reward, proxy=reward)])
