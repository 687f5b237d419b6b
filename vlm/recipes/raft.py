"""Rejection sampling beside GRPO: imitate the answers that were right, all of them.

RAFT (arXiv:2304.06767): sample, keep what scores, fine-tune on it, repeat (the idea is checked against the paper's
abstract, no number is). Every answer that scores above 0.5 is kept, and none where all fail, rather than the best of K
per question as there. Same start, questions, reward and budget as vlm/grpo; no entropy bonus, as it has no need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...trainers.config import POLICY_GRADIENT
from ...trainers.ranges import Number
from ..setting import LanguageConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(LanguageConfig):
    """vlm/grpo's, and what counts as right."""

    FIXED: ClassVar[tuple[str, ...]] = POLICY_GRADIENT

    entropy_coef: float = 0.0
    threshold: Number = 0.5
    """Answers that score more are imitated."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from functools import partial

    from ...trainers.objectives import WeightedImitation
    from ...trainers.pairing import threshold

    setting = start(config, folder)
    reward = setting.reward()
    learner = setting.learner(WeightedImitation(), dropout=True, prepare=[partial(threshold, value=config.threshold)])
    return setting.experiment([setting.stage(learner, reward, proxy=reward)])
