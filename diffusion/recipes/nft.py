"""Good and bad pictures contrasted on the forward process, without a chain's likelihood: DiffusionNFT.

DiffusionNFT (Zheng et al., arXiv:2509.16117): pictures are noised again; their optimality r in [0, 1] weighs the
denoising loss of the policy against that of its implied negative. Any sampler will do, and nothing of a chain but its
picture is kept.

Checked against the code (NVlabs/DiffusionNFT), see ``ForwardNFT``: the loss, no guidance in training. There the policy
that samples follows the trained one by a growing moving average; here it is the one that the update began with.
Numbers chosen on this project's tuning split.
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

    beta: float = 1.0
    """How far the implied policies stand from the old one (1 in the code; checked)."""
    forward_draws: int = 2
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
    from ...trainers.objectives import ForwardNFT
    from ...trainers.pairing import optimality
    from ..setting import start

    setting = start(config, forward_draws=config.forward_draws)
    learner = PolicyLearner(
        setting.policy,
        ForwardNFT(config.beta),
        Optimisation(config.lr, config.inner_steps, max_grad_norm=config.max_grad_norm, seed=config.seed),
        prepare=[optimality],
    )
    return setting.experiment([setting.stage(learner)])
