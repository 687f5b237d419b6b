"""A policy that imitated one to three demonstrations goes on learning from its own estimate of progress.

Paper: EVOLVE-VLA (Bai, Gao, Shou, arXiv:2512.14666).
Faithful: milestones every ``milestone_interval`` environment steps and a check every ``check_interval``, fewer (Alg.
1); each check compares with the latest milestone, and v <- v + (1 - v) c there (Eq. 1-2); an episode ends where v
passes a threshold, and pays v; the horizon grows in stages; GRPO with the group's standard deviation. Read in the
paper, which has no released code; the rule of v equals VLAC's released one by running both (to 1e-8), clips of .2 and
.28, no KL and the mean over an episode's decisions are SimpleVLA-RL's, read in its code at 7c51662. Intervals keep
the proportions of the paper's example (64 of 512 steps; its 32 queries an episode imply 16): here 20 and 5 of some
150.
Left out: VLAC itself and its reference trajectory (``rewards.progress.vlm_progress.VLAC`` is what ``--critic`` would
name), OpenVLA-OFT, LIBERO. SimpleVLA-RL's temperature of 1.6 is ``--temperature`` (a Gaussian's scales its deviation;
the default is 1), its dynamic sampling ``--dynamic-sampling``.
Differs: the critic ("advance") learns from the policy's own demonstrations and reads the simulator's state, goals
included; thresholds are what each task's demonstrations reach where they first succeed; between milestones v + (1 -
v) c counts, clamped to 0..1; a group's deviation is ``std_floor`` at least; a Gaussian with coherent noise has a
composite likelihood (``vla/policy.py``); a gate with a judge of another kind decides what may stay (``--gate none``).
Threshold, stages, group size and learning rate are not given in the paper, and were chosen on tuning states.
Labels: one to three demonstrations that succeeded, and when, imitated before training and shown to the critics; none
in training, where success is sealed. With ``--critic pretrained`` also the success of episodes of other tasks. A
repair by the gate imitates the demonstrations in every step after it.
Expected: not measured yet on evaluation seeds.
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

CITATION = "EVOLVE-VLA: Bai, Gao, Shou, arXiv:2512.14666"


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
    setting.citation = CITATION
    learner = setting.learner(*clip_higher(setting.config, config))
    return assemble(config, setting, folder, learner, config.accumulate)
