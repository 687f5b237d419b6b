"""One step's estimate of the picture is judged and its gradient followed: ReFL.

Paper: reward feedback learning (ImageReward; Xu et al., arXiv:2304.05977).
Faithful: denoise without gradient to a random late step, predict the picture from there, and follow the reward's
gradient through that one prediction; the hinge max(0, 2 - r) with ``--ceiling 2``, and the last quarter of the chain
with ``--first 0.75``, as the released code (THUDM/ImageReward c1392c6, read) has them.
Left out: its scale of the loss, 1e-3, which AdamW does not see.
Differs: by default no hinge, since rewards here are not normalised, and the later half of the chain, of which the
small default has six steps. A denoising loss on real pictures holds the model where it was, as the paper has it and
its code has not: true renders of rewarded captions in the small world; with prompts of your own there are none, and
the pictures of the start take their place. Numbers are not tuned.
Labels: true renders of rewarded captions, imitated in every step (``--sft-coef 0``: none); the reward's: in the small
world by default a classifier learned from true renders of every caption; the gate's there: true renders of the
captions that it looks at; the start, whose pretraining drew all captions.
Expected: not measured yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...trainers.config import POLICY_GRADIENT
from ...trainers.ranges import Number, Share
from ..setting import DiffusionConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(DiffusionConfig):
    """Numbers without a source are not tuned."""

    SMALL: ClassVar[Mapping[str, Any]] = {"tasks_per_step": 32}
    TINY: ClassVar[Mapping[str, Any]] = {"group_size": 1}
    FIXED: ClassVar[tuple[str, ...]] = POLICY_GRADIENT
    through_decoder: ClassVar[bool] = True

    max_steps: int = 48
    group_size: int = 1
    """Pictures per prompt and round; the gradient compares a picture with nothing."""
    first: Share = 0.5
    """Where the range of random steps begins, as a share of the chain (0.75 of 40 in the paper)."""
    ceiling: Number | None = None
    """Rewards above it are not pushed further (2 in the paper, whose reward is normalised)."""
    sft_coef: float = 0.1
    """Weight of the denoising loss on real pictures."""
    gate: str = "best"
    gate_every: int = 4


def build(config: Config, folder: RunFolder) -> Experiment:
    from ..gradients import OneStep
    from .alignprop import assemble

    setting = start(config, folder)
    return assemble(config, setting, OneStep(config.first), ceiling=config.ceiling)
