"""The best pictures of each prompt are imitated: RAFT.

Paper: RAFT (Dong et al., arXiv:2304.06767).
Faithful: draw, keep the best of each prompt's pictures, however good it is, finetune on them with the denoising loss,
repeat with fresh pictures. No policy gradient, no likelihood of a chain. Recalled, not checked.
Left out: the paper's annealing of the number of pictures, and its KL within the reward.
Differs: a round is a few gradient steps on 16 prompts, there two epochs over thousands. Numbers are not tuned;
without real pictures beside them (``--sft-coef``) it forgets what pictures look like.
Labels: the reward's: in the small world by default a classifier learned from true renders of every caption; the
gate's there: true renders of the captions that it looks at; the start, whose pretraining drew all captions; with
``--sft-coef`` true renders of rewarded captions, imitated in every step.
Expected: not measured yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...trainers.config import POLICY_GRADIENT, SelectionFields
from ...trainers.ranges import Count
from ..setting import DiffusionConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(SelectionFields, DiffusionConfig):
    """Numbers without a source are not tuned."""

    FIXED: ClassVar[tuple[str, ...]] = POLICY_GRADIENT

    forward_draws: Count = 4
    """Levels at which a picture is noised again."""
    epochs: int = 2


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.objectives import WeightedImitation
    from ...trainers.pairing import selected

    setting = start(config, folder, forward_draws=config.forward_draws)
    learner = setting.learner(WeightedImitation(decisions="forward"), prepare=[selected(config)])
    return setting.experiment([setting.stage(learner)])
