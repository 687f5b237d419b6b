"""One step's estimate of the picture is judged and its gradient followed: ReFL.

Reward feedback learning (ImageReward; Xu et al., arXiv:2304.05977): denoise without gradient to a random late step,
predict the picture from there, and follow the reward's gradient through that one prediction; a denoising loss on
real pictures holds the model where it was. Recalled, not checked: the last quarter of the chain, the hinge
max(0, 2 - r) on a normalised reward. In the small world the real pictures are true renders of the seen captions; with
prompts of your own there are none, and the pictures of the start take their place.
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

    iterations: int = 48
    prompts_per_step: int = 32
    group: int = 1
    """The gradient compares a picture with nothing: one of each prompt."""
    first: float = 0.5
    """Where the range of random steps begins, as a share of the chain (0.75 of 40 in the paper)."""
    ceiling: float | None = None
    """Rewards above it are not pushed further (2 in the paper, whose reward is normalised)."""
    anchor: float = 0.1
    """Weight of the denoising loss on real pictures."""
    anchors: int = 256
    """Real pictures."""
    gate: Literal["best", "non_inferiority", "none"] = "best"
    gate_every: int = 4


def debug() -> Config:
    """Two rounds in seconds."""
    return Config(**TINY)


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.learner import AnchorSet
    from ...trainers.objectives import WeightedImitation
    from ..gradients import OneStep
    from ..setting import start
    from .alignprop import assemble

    setting = start(config, differentiable=True)
    anchors = AnchorSet(setting.real_pictures(config.anchors), WeightedImitation(), weight=config.anchor)
    return assemble(config, setting, OneStep(config.first), ceiling=config.ceiling, anchors=anchors)
