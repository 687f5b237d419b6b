"""The model ranks its own answers and learns its own preferences, with what keeps that from running away.

Self-rewarding preference learning (DPO) in three variants:

* plain: the best against the worst answer of each question by the judge;
* cream: CREAM (arXiv:2410.12735; checked against the code): answers are ranked by the policy's own implicit reward,
  and a preference is softened by how far the last round's model ranks the same way;
* temporal: Temporal Self-Rewarding (arXiv:2508.06026; checked against notes on the paper): the rejected answer comes
  from the start, the chosen one from a look one update ahead.

The judge of plain and temporal is the second look (``--ranker looking``) or the yes or no of the model as it was at the
start (``asking``), where the papers ask the model as it is.

Differs: a round is one gradient step on 32 questions, and the reference stays the start. So temporal's preference
has no margin (by default its reference is the policy of the same step: an unanchored contrast, not DPO), and cream's
softening is off, since consecutive rankings agree to .98 and more. Demonstrations are imitated in every gradient step
(``--sft-coef``). Figures here say nothing about the papers' systems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...trainers.config import POLICY_GRADIENT
from ...trainers.ranges import Positive
from ..setting import LanguageConfig, start

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(LanguageConfig):
    """Numbers without a source were chosen on the tuning split."""

    SMALL: ClassVar[Mapping[str, Any]] = {"tasks_per_step": 32, "group_size": 8, "lr": 3e-4}
    TINY: ClassVar[Mapping[str, Any]] = {"gate_labels": 0}
    FIXED: ClassVar[tuple[str, ...]] = (*POLICY_GRADIENT, "rewards", "reference", "kl_coef")

    entropy_coef: float = 0.0
    variant: Literal["plain", "cream", "temporal"] = "plain"
    """Which of the three is run."""
    ranker: Literal["looking", "asking"] = "looking"
    """Who scores the answers of plain and temporal."""
    beta: Positive = 0.1
    """DPO's (the usual value; not checked)."""
    soften: bool = True
    """cream: weigh preferences by consistency; without it they are hard, its own ablation."""
    agreement: Literal["rank", "extremes"] = "rank"
    """cream: consistency is (tau + 1) / 2 of the two rankings, or whether their best and worst are the same."""
    future: bool = True
    """temporal: choose from the future too; without it from the present alone, its own ablation."""
    gate_labels: int = 0


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...families import families_of
    from ...rewards.log_ratio import scorer
    from ...rewards.reward import Reward
    from ...rewards.text.agreement import consistency, same_extremes
    from ...trainers.learner import Optimisation
    from ...trainers.objectives import DPO
    from ...trainers.pairing import best_worst
    from ..asking import Asking
    from ..pairs import Cream, PastAndFuture, kept_score
    from ..small.rereading import Rereading
    from ..watch import Watch

    setting = start(config, folder, labels=False)
    judge: Any = Rereading(setting.eyes) if config.ranker == "looking" else Asking(setting.start)
    if config.variant == "temporal":
        look = Optimisation(setting.config.lr, max_grad_norm=config.max_grad_norm)
        actor: Any = PastAndFuture(setting.policy, setting.start, judge, look, beta=config.beta, guided=config.future)
        learner = setting.learner(DPO(config.beta, "proximal"), prepare=[best_worst])
        sampling = {"temperature": config.temperature}
        return setting.experiment(
            [setting.stage(learner, Reward(kept_score, families=families_of(judge)), actor=actor, sampling=sampling)]
        )
    if config.variant == "cream":
        previous = setting.policy.fork("previous")
        agreement = consistency if config.agreement == "rank" else same_extremes
        cream = Cream(setting.policy, previous, setting.start, agreement=agreement)
        references = {"reference": setting.start, "previous": previous}
        prepare: list[Any] = [cream] if config.soften else [cream, hard]
        learner = setting.learner(DPO(config.beta), prepare=prepare, references=references)
        watch = Watch(rankings=(scorer(setting.policy), scorer(previous)))
        learners = {"policy": learner, "watch": watch}
        return setting.experiment([setting.stage(learner, Reward(judge, config.ranker), learners=learners)])
    learner = setting.learner(DPO(config.beta, "start"), prepare=[best_worst])
    return setting.experiment([setting.stage(learner, Reward(judge, config.ranker))])


def hard(batch: Any) -> Any:
    """The same pairs with certain preferences."""
    from dataclasses import replace

    return replace(batch, labels=None)
