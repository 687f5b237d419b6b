"""The best pictures of each prompt are imitated: RAFT.

Paper: RAFT (Dong et al., arXiv:2304.06767).
Faithful: draw, keep the best of each prompt's pictures, finetune on them with the denoising loss, repeat. No policy
gradient, no likelihood of a chain. Recalled, not checked: the best one of each prompt, fresh pictures in each round.
Left out: nothing that is known.
Differs: a round is a few gradient steps on 16 prompts, there two epochs over thousands. Numbers are not tuned;
without real pictures beside them (``--sft-coef``) it forgets what pictures look like.
Labels: none but the reward's; the gate of the small world compares with true renders, and with ``--sft-coef`` true
renders of rewarded captions are imitated in every step.
Expected: not measured yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...trainers.config import POLICY_GRADIENT
from ...trainers.ranges import Count
from ..setting import DiffusionConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(DiffusionConfig):
    """Numbers without a source are not tuned."""

    FIXED: ClassVar[tuple[str, ...]] = POLICY_GRADIENT

    best: Count = 1
    """Pictures kept of each group."""
    forward_draws: Count = 4
    """Levels at which a picture is noised again."""
    epochs: int = 2


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.objectives import WeightedImitation
    from ...trainers.pairing import best_of_group

    setting = start(config, folder, forward_draws=config.forward_draws)
    learner = setting.learner(
        WeightedImitation(decisions="forward"), prepare=[lambda batch: best_of_group(batch, config.best)]
    )
    return setting.experiment([setting.stage(learner)])
