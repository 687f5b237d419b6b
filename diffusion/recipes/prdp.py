"""Two pictures' difference in likelihood follows their difference in reward: PRDP.

Paper: PRDP (Deng et al., arXiv:2402.08714).
Faithful: for all pairs of pictures of one prompt [r^(a) - r^(b) - (r(a) - r(b)) / beta]^2 with r^ = log pi / pi_ref
summed over the chain; a pair's loss is the larger of this and the same with every step's log-ratio clipped near its
old value (the proximal update), and a round is several gradient steps, so that it acts; its optimum is the
KL-regularised one. DDPM-like sampling with all steps, and prompts of which none is rewarded. Checked against the
paper (eq. 14), by hand; no code was released.
Left out: training all of the denoiser by default (``--lora-rank 0``).
Differs: learning rate, clip and number of inner steps are not in the paper's main text, and were chosen on this
project's tuning split; beta is the reward's spread within prompts at the start over kappa.
Labels: the reward's: in the small world by default a classifier learned from true renders of every caption; the
gate's there: true renders of the captions that it looks at; the start, whose pretraining drew all captions.
Expected: not measured yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...trainers.config import POLICY_GRADIENT
from ...trainers.ranges import Positive
from ..setting import DiffusionConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(DiffusionConfig):
    """Numbers without a source were chosen on the tuning split."""

    SMALL: ClassVar[Mapping[str, Any]] = {"lr": 2e-3, "minibatches": 2}
    LOADED: ClassVar[Mapping[str, Any]] = {"minibatches": 2}
    FIXED: ClassVar[tuple[str, ...]] = (*POLICY_GRADIENT, "reference", "kl_coef")

    kappa: Positive = 40.0
    """beta = sigma_0 / kappa, sigma_0 the reward's spread within prompts at the start; far less if the reward conflicts
    with the prompts (4 held in such a case, 20 did not)."""
    clip: Positive | None = 2.604e-4
    """Nats per step and scalar of the latent that the log-ratio may leave its old value by; None switches the proximal
    update off."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.objectives import PairwiseRegression
    from ...trainers.pairing import all_pairs
    from ..beta import PairwiseLearner

    setting = start(config, folder)
    # Log-probabilities are sums over the latent, so the clip grows with it.
    clip = None if config.clip is None else config.clip * math.prod(setting.policy.adapter.latent_shape)
    learner = setting.learner(
        PairwiseRegression(1.0, "start", clip=clip),
        kind=PairwiseLearner,
        kappa=config.kappa,
        prepare=[all_pairs],
    )
    return setting.experiment([setting.stage(learner, sampling={"keep_graph": config.keep_graph})])
