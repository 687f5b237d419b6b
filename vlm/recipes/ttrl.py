"""Learn from the majority's answer as if it were right: test-time reinforcement learning, and how it goes wrong.

TTRL (arXiv:2504.16084, not checked): sample answers to unlabelled questions, pay those that agree with the most
frequent one, GRPO. Where the majority is right less often than not, its reward goes to one while accuracy falls; here
it is the standing test of the gate, which is why it has neither demonstrations nor an entropy bonus. The samples that
vote are all learned from; the paper votes with more than it learns from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..setting import start
from . import grpo

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(grpo.Config):
    """vlm/grpo's, with nothing that holds on to the start."""

    FIXED: ClassVar[tuple[str, ...]] = ("rewards",)

    sft_coef: float = 0.0
    entropy_coef: float = 0.0


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...rewards.reward import Reward
    from ...rewards.text.consensus import MajorityVote

    setting = start(config, folder, labels=False)
    return setting.experiment([setting.stage(setting.learner(), Reward(MajorityVote(), "majority"))])
