"""Learn from the majority's answer as if it were right: test-time reinforcement learning, and how it goes wrong.

Paper: TTRL (Zuo et al., arXiv:2504.16084).
Faithful: answers to unlabelled questions are sampled, those that give the most frequent answer are paid 1 and the
others 0, and GRPO learns from it. Invalid answers do not vote, and of several most frequent answers the earliest wins,
as in the released code (PRIME-RL/TTRL, c46b671; by reading). ``--votes`` samples more answers than are learned from,
which are the first ``--group-size`` (64 and 32 there). Several gradient steps a round, no entropy bonus, no KL.
Left out: nothing that is known.
Differs: questions are not those of the evaluation, whose accuracy is of others. 16 answers vote and are learned from by
default. Four steps a round; the baseline that EVOL-RL's code has takes one per question. The gate, which the paper does
not have: where the majority is right less often than not, its reward goes to one while accuracy falls, and this is the
gate's standing test.
Labels: none in training, demonstrations neither (``--sft-coef`` 0); the start has imitated labelled demonstrations; the
gate's labels.
Expected: not measured yet (the figures in docs/results.md are of one step a round).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...trainers.ranges import Whole
from ..setting import Setting, start
from . import grpo

if TYPE_CHECKING:
    from ...trainers.loop import Experiment, Stage
    from ...trainers.runs.run_folder import RunFolder
    from ...types import Learner


@dataclass(frozen=True)
class Config(grpo.Config):
    """vlm/grpo's, with nothing that holds on to the start."""

    SMALL: ClassVar[Mapping[str, Any]] = {"minibatches": 4}
    LOADED: ClassVar[Mapping[str, Any]] = {"minibatches": 4}
    FIXED: ClassVar[tuple[str, ...]] = ("rewards",)

    sft_coef: float = 0.0
    votes: Whole = 0
    """Answers to each question that vote, of which the first group_size are learned from; 0: as many."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...rewards.text.consensus import MajorityVote

    setting = start(config, folder, labels=False)
    return setting.experiment([voted(setting, config.votes, setting.learner(), MajorityVote(), "majority")])


def voted(setting: Setting, votes: int, learner: Learner, reward: Any, name: str) -> Stage:
    """A stage in which more answers vote than are learned from."""
    from ...rewards.reward import Reward
    from ..wrapped import FirstOfGroup

    size = setting.config.group_size
    made: Stage = setting.stage(FirstOfGroup(learner, size), Reward(reward, name), group_size=votes or size)
    return made
