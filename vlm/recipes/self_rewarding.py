"""The model judges its own answers, and learns to prefer those that it likes best: self-rewarding DPO.

Paper: Self-Rewarding Language Models (SRLM; Yuan et al., arXiv:2401.10020).
Faithful: a round samples several answers to each of many questions by M_t, M_t itself, prompted, judges them, the best
and the worst of each question are a pair where they differ, and a DPO run of many gradient steps, from M_t and with M_t
as reference, gives M_{t+1}; beta 0.1. Recalled and read in descriptions of the paper, which has no official code; the
loss and the pairs are tested by hand (tests/test_vlm_pairs.py, tests/test_vlm_preferences.py).
Left out: questions that the model writes itself, which here are the data's; the first supervised stage, in which M_1
learns to answer and to judge: the default model has had lessons of both on its demonstrations ("check"), a loaded one
is taken as it is.
Differs: a judgement is P(yes) of the model asked whether an answer is right, one forward pass, where the paper's model
writes a text that ends in 0 to 5 points, three times. AdamW's moments go on over rounds, and the learning rate stays.
The default model hardly tells right from wrong answers when it is asked; ``--ranker looking`` puts the small world's
rule in its place, which shows the loop with a judge that can judge, and is not self-rewarding.
Labels: none by default but those that the start has learned from: nothing is replayed (``--sft-coef 0``), and the gate
compares two views of a question. ``--ranker looking`` reads the small world's own rule at every answer: an oracle on
what the start reads in the cells.
Expected: not measured yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..preferences import JudgedConfig, dpo_learner, judge_of
from ..setting import start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(JudgedConfig):
    """beta is the paper's (recalled); the default model's learning rate is of one run on another split."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...rewards.reward import Reward
    from ...trainers.pairing import best_worst

    setting = start(config, folder, labels=False)
    reward = Reward(judge_of(config, setting), config.ranker)
    return setting.experiment([setting.stage(dpo_learner(config, setting, [best_worst]), reward)])
