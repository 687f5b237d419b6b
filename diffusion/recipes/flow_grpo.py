"""Group-relative policy optimisation of a flow model, whose ODE is made an SDE for exploring: Flow-GRPO.

Flow-GRPO (Liu et al., arXiv:2505.05470): the deterministic sampler of a flow-matching model becomes an SDE with the
same marginals, so that every step is a Gaussian decision; GRPO does the rest, there with a KL term (``--kl-coef``, off
by default here), with few steps in training. A window of noisy steps, drawn for each round, leaves the others
deterministic (its "fast" variant).

Checked against the code (yifan123/flow_grpo): the SDE and its noise level 0.7, a clip of 1e-4 of a log-probability
averaged over dimensions. Differs: advantages are divided by the prompt's standard deviation, in released configurations
by that of all; the KL of a step is the exact one, theirs lacks the division by the step's length, so that their
coefficient is 4 to 25 times stronger here. Other numbers are diffusion/ddpo's, not tuned for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...trainers.ranges import Whole
from ..setting import DiffusionConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(DiffusionConfig):
    """Numbers without a source are not tuned."""

    SMALL: ClassVar[Mapping[str, Any]] = {"lr": 2e-3}

    sampler: Literal["flow_sde", "flow_ancestral"] = "flow_sde"
    window: Whole = 0
    """Neighbouring steps with noise; 0 takes all but the last, whose noise would stay in the picture."""
    clip_low: float | None = 2.604e-4
    """As in diffusion/ddpo."""
    clip_high: float | None = 2.604e-4
    kl_coef: float = 0.0
    """Weight of the exact KL to the start, as in diffusion/ddpo."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.published import grpo

    setting = start(config, folder)
    policy = setting.policy
    policy.sampler = policy.sampler.windowed(0, policy.sampler.steps - 1)
    sampling = {"window": config.window or None, "keep_graph": config.keep_graph}
    stage = setting.stage(setting.learner(*grpo(setting.config)), sampling=sampling)
    return setting.experiment([stage])
