"""Pairs of answers from different times: rejected ones from the start, chosen ones from a look one DPO run ahead.

Paper: Temporal Self-Rewarding Language Models (arXiv:2508.06026).
Faithful: per round M_t and the start M_0 answer K times each, and M_t judges all of it; chosen is M_t's best, rejected
M_0's worst, or M_t's where that is no better; a whole DPO run on these pairs, from M_t with M_t as reference, makes the
future model, whose best answer becomes chosen where M_t likes it better; the second DPO run, again from M_t with M_t as
reference, gives M_{t+1}, and the future is dropped. Checked against notes on the paper (no code was found); that M_t is
the reference of both runs is recalled, and beta is the usual 0.1. ``--no-future`` is the paper's ablation, past alone.
Left out: the supervised stage on answers and judgements before the first round, see vlm/self_rewarding.
Differs: as in vlm/self_rewarding, a judgement is P(yes) and not a written score.
Labels: as in vlm/self_rewarding: none but the start's own, an oracle with ``--ranker looking``.
Expected: not measured yet; in a run on another split, without the gate, the default model fell. On forty responses with
a noisy judge the pairs keep their gap, and a model's own best and worst do not (tests/test_vlm_pairs.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..preferences import JudgedConfig, dpo_learner, judge_of
from ..setting import start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(JudgedConfig):
    """Numbers are those of vlm/self_rewarding."""

    future: bool = True
    """Choose from the future too; without it from the present alone."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...families import families_of
    from ...rewards.reward import Reward
    from ...trainers.pairing import best_worst
    from ..pairs import PastAndFuture, kept_score

    setting = start(config, folder, labels=False)
    judge = judge_of(config, setting)
    look = setting.optimisation()
    actor: Any = PastAndFuture(setting.policy, setting.start, judge, look, beta=config.beta, guided=config.future)
    reward = Reward(kept_score, families=families_of(judge))
    sampling = {"temperature": config.temperature}
    learner = dpo_learner(config, setting, [best_worst])
    return setting.experiment([setting.stage(learner, reward, actor=actor, sampling=sampling)])
