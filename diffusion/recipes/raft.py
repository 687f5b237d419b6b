"""The best pictures of each prompt are imitated: RAFT.

RAFT (Dong et al., arXiv:2304.06767): draw, keep the best of each prompt, finetune on them with the denoising loss,
repeat. No policy gradient, no likelihood of a chain. Not checked against the paper: best of 8, fresh pictures in each
round. Numbers below were chosen on this project's tuning split; without anchors it forgets what pictures look like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..setting import DrawingConfig

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.run_folder import RunFolder


@dataclass(frozen=True)
class Config(DrawingConfig):
    """Numbers without a source were chosen on the tuning split."""

    best: int = 2
    """Pictures kept of each group."""
    forward_draws: int = 4
    """Levels at which a picture is noised again."""
    inner_steps: int = 2
    """Gradient steps per round."""
    lr: float = 1e-3
    max_grad_norm: float = 1.0


def debug() -> Config:
    """Two rounds in seconds."""
    return Config(iterations=2, prompts_per_step=2, group=3, eval_episodes=1, gate_every=1, gate_pictures=1, grid=2)


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.learner import Optimisation, PolicyLearner
    from ...trainers.objectives import WeightedImitation
    from ...trainers.pairing import best_of_group
    from ..setting import start

    setting = start(config, forward_draws=config.forward_draws)
    learner = PolicyLearner(
        setting.policy,
        WeightedImitation(decisions="forward"),
        Optimisation(config.lr, config.inner_steps, max_grad_norm=config.max_grad_norm, seed=config.seed),
        prepare=[lambda batch: best_of_group(batch, config.best)],
    )
    return setting.experiment([setting.stage(learner)])
