"""A policy that imitated one to three demonstrations goes on learning from its own estimate of progress.

PLACEHOLDER
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from ...errors import UsageError
from ...trainers.ranges import Range
from ..grpo import GRPOFields, clip_higher
from ..progress import ProgressConfig, assemble
from ..setting import start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(GRPOFields, ProgressConfig):
    """Numbers without a source in the comment were chosen on tuning states."""

    accumulate: Literal["milestones", "mix_f", "last"] = "milestones"
    """How answers over an episode become the estimate: EVOLVE-VLA's milestones, VLAC's mix_f, or the newest answer
    alone, which is the paper's baseline."""
    critic: str = "advance"
    horizon_shares: tuple[Annotated[float, Range(0, 1)], ...] = (0.6, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accumulate == "last" and self.milestone_interval:
            raise UsageError("--milestone-interval is about --accumulate milestones and mix_f")


def build(config: Config, folder: RunFolder) -> Experiment:
    setting = start(config, folder)
    learner = setting.learner(*clip_higher(setting.config, config))
    return assemble(config, setting, folder, learner, config.accumulate)
