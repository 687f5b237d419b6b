"""Rejection sampling beside evolve_vla: imitate the best episode of each group, by the same estimate of progress.

Paper: RAFT (Dong et al., arXiv:2304.06767).
Faithful: the best of K per prompt is imitated, and the rest is not looked at (``trainers.pairing.best_of_group``);
read in the abstract, not checked against code.
Left out: the paper's temperature and its penalty of the divergence (``--kl-coef``); no number is the paper's.
Differs: two passes over what was kept (``--epochs``); prompts are initial states; rewards, the end of episodes and
the growing horizon are evolve_vla's. No gate by default.
Labels: demonstrations that succeeded, and when, imitated before training and shown to the critic; none in training.
Expected: not measured yet with this reward; with that of best_progress from 67.0 to 76.9 [evolve_vla.json:
arms.raft.summary.mean.after] per cent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...trainers.config import POLICY_GRADIENT
from ...trainers.ranges import Count
from ..progress import assemble
from ..setting import start
from . import evolve_vla

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(evolve_vla.Config):
    """evolve_vla's, and how many episodes are kept."""

    FIXED: ClassVar[tuple[str, ...]] = (*POLICY_GRADIENT, "loss_agg_mode")

    best: Count = 1
    """Episodes of each group that are imitated."""
    gate: str = "none"


def build(config: Config, folder: RunFolder) -> Experiment:
    from functools import partial

    from ...trainers.objectives import WeightedImitation
    from ...trainers.pairing import best_of_group

    setting = start(config, folder)
    setting.citation = "RAFT: Dong et al., arXiv:2304.06767"
    learner = setting.learner(WeightedImitation(), prepare=[partial(best_of_group, k=config.best)])
    return assemble(config, setting, folder, learner, config.accumulate)
