"""Group-relative policy optimisation of a flow model, whose ODE is made an SDE for exploring: Flow-GRPO.

Paper: Flow-GRPO (Liu et al., arXiv:2505.05470).
Faithful: the SDE with the marginals of the deterministic sampler and its noise level 0.7, equal to the released
code's step; log-probabilities averaged over dimensions, a clip of 1e-4 with a loaded pipeline, two gradient steps a
round; rewards less their prompt's mean by the standard deviation of all of the round, clamped at 5; the KL term with
its coefficient 0.04 (0.01 there for PickScore), whose denominator lacks the step's length (``--kl-estimator code``).
Checked against yifan123/flow_grpo ac4c86e, read and run on the same tensors. The fast variant (``--window``): one
deterministic prefix for each prompt, from which its pictures branch off at a step drawn for each round; as its README
describes (zhtmike's copy, 9745241), whose code has all pictures take their own way there unless ``same_latent`` is
set.
Left out: an average of the weights, which is an option (``--ema``); groups without spread count in the divisor, where
the code drops them (``--dynamic-sampling`` draws others in their place).
Differs: standard deviations are of N - 1. All prompts of a round share the window. Other numbers of the small default
are diffusion/ddpo's, not tuned for it.
Labels: the reward's: in the small world by default a classifier learned from true renders of every caption; the
gate's there: true renders of the captions that it looks at; the start, whose pretraining drew all captions.
Expected: not measured yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...trainers.ranges import Positive, Whole
from ..setting import DiffusionConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(DiffusionConfig):
    """Numbers without a source are not tuned."""

    SMALL: ClassVar[Mapping[str, Any]] = {"lr": 2e-3, "minibatches": 2, "clip_low": 2.604e-4, "clip_high": 2.604e-4}
    LOADED: ClassVar[Mapping[str, Any]] = {"minibatches": 2, "clip_low": 1e-4, "clip_high": 1e-4}

    sampler: Literal["flow_sde", "flow_ancestral"] = "flow_sde"
    window: Whole = 0
    """Neighbouring steps with noise; 0 takes all but the last, whose noise would stay in the picture."""
    same_latent: bool | None = None
    """Pictures of a prompt begin at the same noise, and with a window share all steps before it; None: with a window
    only."""
    scale_rewards: Literal["group", "batch", "none"] = "batch"
    """Whose standard deviation rewards are divided by: their prompt's or all of the round; none divides by nothing."""
    adv_clip_max: Positive | None = 5.0
    """Advantages are clamped to this size."""
    kl_estimator: Literal["code", "exact"] = "code"
    """The KL of a step: exact, or as the released code computes it, times the step's length (0.04 to 0.27 in ten
    steps of SD 3)."""
    kl_coef: float = 0.04
    """Weight of that KL to the start, a mean over steps and scalars (0.01 and 0.04 in the code)."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.advantages import GroupRelative
    from ...trainers.objectives import KLPenalty
    from ...trainers.published import clipped

    setting = start(config, folder)
    chosen: Any = setting.config
    policy = setting.policy
    policy.sampler = policy.sampler.windowed(0, policy.sampler.steps - 1)
    branch = bool(config.window) if config.same_latent is None else config.same_latent
    sampling = {"window": config.window or None, "same_latent": branch, "keep_graph": config.keep_graph}
    advantage = GroupRelative(config.scale_rewards, std_floor=chosen.std_floor, eps=1e-4, clip_max=config.adv_clip_max)
    lengths = policy.sampler.lengths if config.kl_estimator == "code" else None
    kl = config.kl_coef * KLPenalty(config.reference, "exact", weights=lengths) if config.kl_coef else None
    learner = setting.learner(clipped(chosen), advantage, regulariser=kl)
    return setting.experiment([setting.stage(learner, sampling=sampling)])
