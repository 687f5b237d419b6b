"""Rejection sampling beside evolve_vla: imitate the best episode of each group, by the same learned progress.

RAFT (arXiv:2304.06767): sample, keep the best, fine-tune on it, repeat (the idea is checked against the
paper's abstract, no number is). Same start, critic, termination and budget as evolve_vla; no gate.
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
    learner = setting.learner(WeightedImitation(), prepare=[partial(best_of_group, k=config.best)])
    return assemble(config, setting, folder, learner, config.accumulate)
