"""Group-relative policy optimisation of a flow model, whose ODE is made an SDE for exploring: Flow-GRPO.

Flow-GRPO (Liu et al., arXiv:2505.05470): the deterministic sampler of a flow-matching model becomes an SDE with the
same marginals, so that every step is a Gaussian decision; GRPO with a KL term does the rest, with few steps in
training. A window of noisy steps, drawn for each round, leaves the others deterministic (its "fast" variant).

Checked against the code (yifan123/flow_grpo): the SDE and its noise level 0.7, advantages per prompt, the exact KL of
steps, a clip of 1e-4 of a log-probability averaged over dimensions. Other numbers are
diffusion/ddpo's, not tuned for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..setting import TINY, DrawingConfig

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.run_folder import RunFolder


@dataclass(frozen=True)
class Config(DrawingConfig):
    """Numbers without a source are not tuned."""

    sampler: Literal["flow_sde", "flow_ancestral"] = "flow_sde"
    window: int = 0
    """Neighbouring steps with noise; 0 takes all but the last, whose noise would stay in the picture."""
    clip: float = 2.604e-4
    """As in diffusion/ddpo."""
    kl: float = 0.0
    """Weight of the exact KL to the start, as in diffusion/ddpo."""
    lr: float = 2e-3


def debug() -> Config:
    """Two rounds in seconds."""
    return Config(**TINY, group=3)


def build(config: Config, folder: RunFolder) -> Experiment:
    from ..setting import start
    from .ddpo import learner_of

    setting = start(config)
    policy = setting.policy
    policy.sampler = policy.sampler.windowed(0, policy.sampler.steps - 1)
    stage = setting.stage(learner_of(config, setting), window=config.window or None, keep_graph=config.keep_graph)
    return setting.experiment([stage])
