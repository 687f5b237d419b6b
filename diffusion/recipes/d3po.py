"""Preferences between two pictures train every denoising step: D3PO.

D3PO (Yang et al., arXiv:2311.13231): direct preference optimisation in which each step of the better picture's chain is
preferred to the same step of the worse one's, without a reward model. Here a reward stands in for the person who
prefers: the best and the worst picture of each prompt. Numbers are not tuned.

Differs: beta is the code's 0.1, which there weighs a mean over the latent and here a sum, thousands of times as much on
large pictures; and the code's clamp of the ratio is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...trainers.config import POLICY_GRADIENT
from ...trainers.ranges import Positive
from ..setting import DiffusionConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(DiffusionConfig):
    """Numbers without a source are not tuned."""

    FIXED: ClassVar[tuple[str, ...]] = (*POLICY_GRADIENT, "reference", "kl_coef")

    beta: Positive = 0.1
    """Nats of a step's log-ratio count this much (0.1 recalled, not checked)."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.objectives import DPO
    from ...trainers.pairing import best_worst

    setting = start(config, folder)
    learner = setting.learner(DPO(config.beta, "start", level="decision"), prepare=[best_worst])
    return setting.experiment([setting.stage(learner, sampling={"keep_graph": config.keep_graph})])
