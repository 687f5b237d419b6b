"""A policy that imitated one to three demonstrations goes on learning from the best progress that each episode reached.

Paper: none, a method of this project, of EVOLVE-VLA's kind (progress as reward and as the end of episodes).
Faithful: the clips of .2 and .28 are those of SimpleVLA-RL's scripts, read.
Left out: nothing that is known.
Differs: from ``vla/evolve_vla``: the estimate is absolute, and the best of an episode counts (on frames the newest);
it is paid as a share of the task's threshold, with a bonus for passing it (``--completion``); the horizon does not
grow.
Labels: one to three demonstrations that succeeded, and when, imitated before training and shown to the critics; none
in training, where success is sealed. With ``--critic pretrained`` also the success of episodes of other tasks. A
repair by the gate imitates the demonstrations in every step after it.
Expected: on the five default tasks from 67.0 to 80.2 [evolve_vla.json: arms.evolve_vla.summary.mean.after] per cent,
where its arm is called evolve_vla.
"""

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
