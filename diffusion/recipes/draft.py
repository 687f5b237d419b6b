"""The reward's gradient through the last K steps, or a cheaper estimate of the last one's: DRaFT.

DRaFT (Clark et al., arXiv:2309.17400): as AlignProp with a fixed K (DRaFT-K), or the last step alone, averaged over
several pictures that are noised again (DRaFT-LV, lower variance). Not checked against the paper: K of 1 suffices there,
two copies for LV. Numbers below were chosen on this project's tuning split.
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
    """Numbers without a source were chosen on the tuning split."""

    iterations: int = 48
    prompts_per_step: int = 32
    group: int = 1
    """The gradient compares a picture with nothing: one of each prompt."""
    last_steps: int = 1
    """K, the steps with gradient."""
    renoised: int = 0
    """Copies of each picture that are noised again: DRaFT-LV; 0 is DRaFT-K."""
    gate: Literal["best", "non_inferiority", "none"] = "best"
    gate_every: int = 4


def debug() -> Config:
    """Two rounds in seconds."""
    return Config(**TINY)


def build(config: Config, folder: RunFolder) -> Experiment:
    from ..gradients import Renoised, Truncation
    from ..setting import start
    from .alignprop import assemble

    setting = start(config, differentiable=True)
    cut = Renoised(config.renoised) if config.renoised else Truncation("fixed", config.last_steps)
    return assemble(config, setting, cut)
