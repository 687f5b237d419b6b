"""PLACEHOLDER."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ...trainers.ranges import Share
from ..progress import ProgressConfig, assemble
from ..setting import start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(ProgressConfig):
    """Numbers without a source in the comment were chosen on tuning states."""

    FIXED: ClassVar[tuple[str, ...]] = ("milestone_interval",)

    accumulate: Literal["auto", "last", "best", "mean", "difference"] = "auto"
    """How answers over an episode become the estimate; "auto" is the best so far on states and the last on frames."""
    completion: Share = 0.3
    """Share of the reward that is paid for ending above the threshold alone."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...trainers.published import clipped, normalised

    setting = start(config, folder)
    learner = setting.learner(clipped(setting.config, 0.2, 0.28), normalised(setting.config))
    auto = "last" if config.obs_type == "pixels" else "best"
    rule = auto if config.accumulate == "auto" else config.accumulate
    return assemble(config, setting, folder, learner, rule, config.completion)
