"""The best pictures of each prompt are imitated: RAFT.

RAFT (Dong et al., arXiv:2304.06767): draw, keep the best of each prompt, finetune on them with the denoising loss,
repeat. No policy gradient, no likelihood of a chain. Not checked against the paper: best of 8, fresh pictures in each
round. Numbers are not tuned; without real pictures beside them (``--sft-coef``) it forgets what pictures look like.
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

    best: Count = 2
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
