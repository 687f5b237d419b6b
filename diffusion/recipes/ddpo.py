"""Denoising is a decision process, and policy gradients train it: DDPO.

DDPO (Black et al., arXiv:2305.13301), the importance-sampled form: every denoising step is a Gaussian decision whose
clipped likelihood ratio is weighted by the picture's advantage, the reward normalised within its prompt.

Checked against the code (kvablack/ddpo-pytorch): log-probabilities averaged over dimensions, clip 1e-4 of that mean,
DDIM with eta 1, no KL term. Its learning rate is 3e-4 with LoRA on SD 1.5; the one below was chosen on this project's
tuning split. With ``kl_coef`` it is held near the start, as DPOK (arXiv:2305.16381, not checked) does; compare PRDP
with that, not with kl_coef = 0 alone. By default a round is one gradient step, so nothing is clipped (DDPO-SF); left
out are the clamp of advantages at 5 and the running statistics of each prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..setting import DiffusionConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(DiffusionConfig):
    """Numbers without a source were chosen on the tuning split."""

    SMALL: ClassVar[Mapping[str, Any]] = {"lr": 2e-3}

    clip_low: float | None = 2.604e-4
    """How far the ratio of a step's mean log-probability per scalar may fall below 1."""
    clip_high: float | None = 2.604e-4
    kl_coef: float = 0.0
    """Weight of the exact KL to the start, per picture, against advantages of order 1; 0.025 is PRDP's kappa of 40."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.published import grpo

    setting = start(config, folder)
    # A ratio is of the mean over a step's dimensions, and so is KLPenalty: kl_coef trades a picture's advantage against
    # its nats.
    learner = setting.learner(*grpo(setting.config))
    return setting.experiment([setting.stage(learner, sampling={"keep_graph": config.keep_graph})])
