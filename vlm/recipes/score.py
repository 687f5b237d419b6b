"""Two attempts at every question, and the second is paid for being better than the first.

Paper: SCoRe (Kumar et al., arXiv:2409.12917).
Faithful: stage one pays the second attempt while a KL keeps the first where it is (beta2 0.1); stage two pays the first
attempt r(y1) and the second r(y2) + alpha (r(y2) - r(y1)), alpha = 10, with a KL on both (beta1 0.01). The words of
each attempt carry their own term alone, less its mean over the question's attempts and not divided by its spread, so
that alpha keeps its strength. Coefficients are tested by hand; formulas and numbers were read in a re-implementation
(BY571/SCoRe, 3e0d90e), not in the paper. ``--bonus 0`` is two-turn learning without the bonus, its own ablation.
Left out: in stage one the paper's formula lets the gradient of r(y2) reach the first attempt too; here it does not.
Differs: a mean over the group is subtracted, of REINFORCE a baseline. ``--minibatches`` above 1 clips ratios as PPO
does. Demonstrations are imitated in every gradient step (``--sft-coef``, 0.5).
Labels: the answers of training questions, by the reward; the demonstrations, with answers and traces, in every step;
the gate's labels.
Expected: not measured yet (the figures in docs/results.md divided alpha away, and are withdrawn).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...trainers.ranges import Amount, Share
from ..setting import LanguageConfig, is_small, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(LanguageConfig):
    """Numbers with a source are the paper's."""

    SMALL: ClassVar[Mapping[str, Any]] = {"tasks_per_step": 16}
    TINY: ClassVar[Mapping[str, Any]] = {"stage_one": 0.5}
    FIXED: ClassVar[tuple[str, ...]] = ("advantage", "std_floor", "overlong_buffer", "overlong_penalty")

    again: str = ""
    """What is said between the attempts; empty takes one word for the default model and a sentence for others."""
    bonus: Amount = 10.0  # alpha (re-implementation)
    """Weight of the improvement."""
    kl_first: Amount = 0.1  # beta2 (re-implementation)
    """KL weight on the first attempt in stage one."""
    kl_coef: float = 0.01  # beta1 (re-implementation)
    stage_one: Share = 0.3
    """Share of the rounds that stage one takes."""


SENTENCE = "There may be a mistake in the answer above. Answer the question again."


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...rewards.reward import Reward
    from ...trainers.advantages import GroupRelative
    from ...trainers.objectives import KLPenalty
    from ...trainers.published import clipped
    from ..conversation import Conversation, Script
    from ..credit import Correction, OnTurns

    setting = start(config, folder)
    again = config.again or ("again" if is_small(config) else SENTENCE)
    actor: Any = Conversation(setting.policy, Script((again,)), turns=2)
    reward = setting.reward()
    advantage = GroupRelative(scale="none", per_segment=True)
    held: Any = config.kl_first * OnTurns(KLPenalty("start"), (0,))
    first = round(config.stage_one * config.max_steps)
    stages = []
    for name, term, steps in (("first", held, first), ("second", None, config.max_steps - first)):
        if steps:
            paid = Reward(Correction(reward, name, config.bonus), f"correction {name}")  # type: ignore[arg-type]
            learner = setting.learner(clipped(config), advantage=advantage, steps=steps, regulariser=term)
            stages.append(setting.stage(learner, paid, actor=actor, steps=steps))
    return setting.experiment(stages)
