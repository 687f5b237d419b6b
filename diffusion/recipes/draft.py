"""The reward's gradient through the last K steps, or a cheaper estimate of the last one's: DRaFT.

Paper: DRaFT (Clark et al., arXiv:2309.17400).
Faithful: the gradient of a differentiable reward through the last K steps of sampling into adapters, K fixed
(DRaFT-K), or through the last step alone, averaged over several pictures that are noised again (DRaFT-LV,
``--renoised``). Recalled, not checked: K of 1 suffices there, two copies for LV. There is no released code.
Left out: nothing that is known.
Differs: a judge of another family stops the run. Numbers were chosen on this project's tuning split.
Labels: the reward's: in the small world by default a classifier learned from true renders of every caption; the
gate's there: true renders of the captions that it looks at; the start, whose pretraining drew all captions.
Expected: not measured yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...trainers.config import POLICY_GRADIENT
from ...trainers.ranges import Count, Whole
from ..setting import DiffusionConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(DiffusionConfig):
    """Numbers without a source were chosen on the tuning split."""

    SMALL: ClassVar[Mapping[str, Any]] = {"tasks_per_step": 32}
    TINY: ClassVar[Mapping[str, Any]] = {"group_size": 1}
    FIXED: ClassVar[tuple[str, ...]] = POLICY_GRADIENT
    through_decoder: ClassVar[bool] = True

    max_steps: int = 48
    group_size: int = 1
    """Pictures per prompt and round; the gradient compares a picture with nothing."""
    last_steps: Count = 1
    """K, the steps with gradient."""
    renoised: Whole = 0
    """Copies of each picture that are noised again: DRaFT-LV; 0 is DRaFT-K."""
    gate: str = "best"
    gate_every: int = 4


def build(config: Config, folder: RunFolder) -> Experiment:
    from ..gradients import Renoised, Truncation
    from .alignprop import assemble

    setting = start(config, folder)
    cut = Renoised(config.renoised) if config.renoised else Truncation("fixed", config.last_steps)
    return assemble(config, setting, cut)
