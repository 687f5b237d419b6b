"""Preferences between two pictures train every denoising step: D3PO.

D3PO (Yang et al., arXiv:2311.13231): direct preference optimisation in which each step of the better picture's chain is
preferred to the same step of the worse one's, without a reward model. Here a reward stands in for the person who
prefers: the best and the worst picture of each prompt. Not checked: beta. Numbers below were chosen on this project's
tuning split.
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

    beta: float = 0.1
    """Nats of a step's log-ratio count this much (0.1 recalled, not checked)."""
    lr: float = 1e-3
    inner_steps: int = 1
    """Gradient steps per round."""
    max_grad_norm: float = 1.0


def debug() -> Config:
    """Two rounds in seconds."""
    return Config(iterations=2, prompts_per_step=2, group=3, eval_episodes=1, gate_every=1, gate_pictures=1, grid=2)


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.learner import Optimisation, PolicyLearner
    from ...trainers.objectives import DPO
    from ...trainers.pairing import best_worst
    from ..setting import start

    setting = start(config)
    learner = PolicyLearner(
        setting.policy,
        DPO(config.beta, "start", level="decision"),
        Optimisation(config.lr, config.inner_steps, max_grad_norm=config.max_grad_norm, seed=config.seed),
        prepare=[best_worst],
        references={"start": setting.start},
    )
    return setting.experiment([setting.stage(learner, keep_graph=config.keep_graph)])
