"""Denoising is a decision process, and policy gradients train it: DDPO.

Paper: DDPO (Black et al., arXiv:2305.13301), the importance-sampled form.
Faithful: every denoising step is a Gaussian decision whose clipped likelihood ratio is weighted by the picture's
advantage; log-probabilities averaged over dimensions; DDIM with eta 1, no KL term; a clip of 1e-4 of that mean with a
loaded pipeline; several gradient steps a round, so that the clip acts (2 and 4 in the code); advantages clamped at 5;
running statistics of each prompt (``--per-prompt-stat-tracking``). Checked by reading the released code
(kvablack/ddpo-pytorch 1958463); the statistics were run on the same rewards.
Left out: gradient steps on a part of a picture's steps.
Differs: a round's pictures of a prompt are compared with each other, as GRPO does, and not with the prompt's latest
16 rewards, which is the code's way and here an option. The learning rate there is 3e-4 with LoRA on SD 1.5; that of
the small default was chosen on this project's tuning split. With ``kl_coef`` it is held near the start, as DPOK
(arXiv:2305.16381, not checked) does; compare PRDP with that, not with kl_coef = 0 alone.
Labels: the reward's: in the small world by default a classifier learned from true renders of every caption; the
gate's there: true renders of the captions that it looks at; the start, whose pretraining drew all captions.
Expected: not measured yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...trainers.ranges import Count, Positive
from ..setting import DiffusionConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(DiffusionConfig):
    """Numbers without a source were chosen on the tuning split."""

    SMALL: ClassVar[Mapping[str, Any]] = {"lr": 2e-3, "minibatches": 2, "clip_low": 2.604e-4, "clip_high": 2.604e-4}
    LOADED: ClassVar[Mapping[str, Any]] = {"minibatches": 2, "clip_low": 1e-4, "clip_high": 1e-4}

    adv_clip_max: Positive | None = 5.0
    """Advantages are clamped to this size."""
    per_prompt_stat_tracking: bool = False
    """Compare a reward with its prompt's latest ones, of former rounds too, instead of with its group's."""
    stat_buffer_size: Count = 16
    """Rewards of a prompt that are remembered."""
    stat_min_count: Count = 16
    """Least of them for statistics of its own; a prompt with fewer takes those of the whole round."""
    kl_coef: float = 0.0
    """Weight of the exact KL to the start, per picture, against advantages of order 1; 0.025 is PRDP's kappa of 40."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.advantages import GroupRelative
    from ...trainers.published import clipped
    from ..statistics import PromptStatistics

    setting = start(config, folder)
    chosen: Any = setting.config
    advantage: Any = GroupRelative(std_floor=chosen.std_floor, clip_max=config.adv_clip_max)
    if config.per_prompt_stat_tracking:
        advantage = PromptStatistics(config.stat_buffer_size, config.stat_min_count, config.adv_clip_max)
    # A ratio is of the mean over a step's dimensions, and so is KLPenalty: kl_coef trades a picture's advantage against
    # its nats.
    learners = setting.learners(setting.learner(clipped(chosen), advantage))
    if config.per_prompt_stat_tracking:
        learners = {"statistics": advantage, **learners}
    stage = setting.stage(learners["policy"], learners=learners, sampling={"keep_graph": config.keep_graph})
    return setting.experiment([stage])
