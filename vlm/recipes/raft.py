"""Answers are sampled, the best one to each question is imitated, and so on: RAFT.

Paper: RAFT (Dong et al., arXiv:2304.06767).
Faithful: of K answers to a question the best is imitated, however good it is, round after round from the policy as it
is (recalled; the released code, read in LMFlow at 0128b9c, keeps the best fifth of a whole round with one answer to
each question instead). No ratio, no clip, no entropy bonus, no KL by default.
Left out: the KL penalty within the reward, which the paper offers (recalled).
Differs: the best of equal answers is the earliest. ``--select threshold`` imitates every answer that scores above
``--threshold`` and nothing of a question where all fail, which is rejection-sampling fine-tuning and not RAFT. Verified
rewards are 0 or 1, so that the best of a question where all fail is a wrong one.
Labels: the answers of training questions, by the reward; the demonstrations, with answers and traces, in every step
(``--sft-coef``); the gate's labels.
Expected: not measured yet (by best of K; the figure of the threshold rule in docs/results.md is withdrawn).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...trainers.config import POLICY_GRADIENT, SelectionFields
from ..setting import LanguageConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(SelectionFields, LanguageConfig):
    """vlm/grpo's, and which answers are imitated."""

    FIXED: ClassVar[tuple[str, ...]] = POLICY_GRADIENT

    entropy_coef: float = 0.0


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.objectives import WeightedImitation
    from ...trainers.pairing import selected

    setting = start(config, folder)
    reward = setting.reward()
    learner = setting.learner(WeightedImitation(), dropout=True, prepare=[selected(config)])
    return setting.experiment([setting.stage(learner, reward, proxy=reward)])
