"""Denoising is a decision process, and policy gradients train it: DDPO.

DDPO (Black et al., arXiv:2305.13301), the importance-sampled form: every denoising step is a Gaussian decision whose
clipped likelihood ratio is weighted by the picture's advantage, the reward normalised within its prompt.

Checked against the code (kvablack/ddpo-pytorch): log-probabilities averaged over dimensions, clip 1e-4 of that mean,
DDIM with eta 1, no KL term. Its learning rate is 3e-4 with LoRA on SD 1.5; the one below was chosen on this project's
tuning split. With ``kl`` it is held near the start, as DPOK (arXiv:2305.16381, not checked) does; compare PRDP with
that, not with kl = 0 alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..setting import TINY, DrawingConfig

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.run_folder import RunFolder
    from ...types import Learner
    from ..setting import Setting


@dataclass(frozen=True)
class Config(DrawingConfig):
    """Numbers without a source were chosen on the tuning split."""

    clip: float = 2.604e-4
    """How far the ratio of a step's mean log-probability per scalar may leave 1."""
    kl: float = 0.0
    """Weight of the exact KL to the start, per picture, against advantages of order 1; 0.025 is PRDP's kappa of 40."""
    lr: float = 2e-3


def debug() -> Config:
    """Two rounds in seconds."""
    return Config(**TINY, group=3)


def build(config: Config, folder: RunFolder) -> Experiment:
    from ..setting import start

    setting = start(config)
    return setting.experiment([setting.stage(learner_of(config, setting), keep_graph=config.keep_graph)])


def learner_of(config: Any, setting: Setting) -> Learner:
    """Clipped policy gradients of decisions, held near the start by ``config.kl``."""
    from ...trainers.advantages import grpo
    from ...trainers.objectives import KLPenalty, PPOClip

    # A ratio is of the mean over a step's dimensions, and so is KLPenalty: kl trades a picture's advantage against
    # its nats.
    objective: Any = PPOClip(config.clip, config.clip)
    if config.kl:
        objective = objective + config.kl * KLPenalty("start", "exact")
    return setting.learner(objective, advantage=grpo())
