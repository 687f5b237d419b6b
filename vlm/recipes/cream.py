"""The model ranks answers by how far training has raised them, and trusts a ranking as far as the one before agrees.

Paper: CREAM (Wang et al., arXiv:2410.12735).
Faithful: read beside the released code (Raibows/CREAM at de1d04b: rewarding.py, cal_consistency.py, data.py,
sft_dpo_trainer.py). M_1 is M_0 after imitating demonstrations. A round samples answers by M_t; they are ranked by the
summed log pi_t - log pi_{t-1}, each judge against the reference that it was trained against, M_0 by its likelihood per
token; the best and the worst are a pair, labelled by the consistency C = (tau + 1) / 2 of this ranking with that of
M_{t-1}, Kendall's tau of ordinal ranks: C l(best, worst) + (1 - C) l(worst, best), where l is DPO's loss from M_t with
reference M_t, beta 0.1, one epoch, and C the mean over the round's questions (``--label question``: each its own). No
label is clamped. Labels, ranks and loss are tested by hand (tests/test_vlm_pairs.py, tests/test_vlm_preferences.py).
Left out: Spearman's correlation beside Kendall's and the extremes.
Differs: "extremes" asks for the same best and the same worst answer, where the code compares the ranks of the first and
the last one sampled; the released script hands consistencies to wrong questions once one is skipped. With adapters the
code's reference of every round is the model without them. AdamW's moments go on over rounds, and the learning rate
stays. The default model's M_0 is itself before it imitated demonstrations, M_1 the start of every recipe; a loaded M_0
imitates the data's demonstrations first, and where there are none M_1 is M_0, whose first round ranks by likelihood.
Equal answers agree in ordinal ranks, and the default model gives many: its C is above 1/2 for this reason; of different
answers alone M_1's ranking goes against M_0's.
Labels: demonstrations with their answers, before the rounds (a loaded model's ``--imitation-steps``; the default start
has imitated them); none in the rounds: nothing is replayed, and the gate compares two views of a question.
Expected: not measured yet. In one run on another split, without the gate, answers grew from 6 to 10 words and became
wrong, while consistency stayed at .7 to .9 and told nothing of it. That the summed log-ratio pays for length would
explain it; a reward per token was not tried beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...trainers.ranges import Whole
from ..preferences import PreferenceConfig, dpo_learner
from ..setting import Setting, load_policy, start
from .sft import nothing

if TYPE_CHECKING:
    from ...trainers.loop import Experiment, Stage
    from ...trainers.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Config(PreferenceConfig):
    """beta and the single epoch are the code's; the other numbers are those of vlm/self_rewarding."""

    SMALL: ClassVar[Mapping[str, Any]] = {"imitation_steps": 0}
    LOADED: ClassVar[Mapping[str, Any]] = {"imitation_steps": 60}

    imitation_steps: Whole | None = None
    """Gradient steps of imitating demonstrations before the rounds."""
    soften: bool = True
    """Weigh preferences by consistency; without it they are hard: self-rewarding by the model's own log-ratio."""
    label: Literal["round", "question"] = "round"
    """Consistency is the mean over a round's questions, or each question's own."""
    agreement: Literal["rank", "extremes"] = "rank"
    """Consistency is (tau + 1) / 2 of the two rankings, or whether their best and worst are the same."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...rewards.reward import Reward
    from ...rewards.text.agreement import ordinal_consistency, same_extremes
    from ..pairs import Judges
    from ..watch import Watch

    setting = start(config, folder, labels=False)
    agreement = ordinal_consistency if config.agreement == "rank" else same_extremes
    first = before_demonstrations(setting)
    judges = Judges(setting.policy, first, agreement=agreement, per=config.label, soften=config.soften)
    policy = dpo_learner(config, setting, [judges.pairs])
    # The judges stand first: they keep the policy that opened the round before it learns.
    learners: dict[str, Any] = {"judges": judges, "policy": policy, "watch": Watch()}
    rounds = setting.stage(policy, Reward(judges, "own log-ratio"), learners=learners)
    return setting.experiment([*imitation(setting), rounds])


def before_demonstrations(setting: Setting) -> Any:
    """M_0: the default model before it imitated demonstrations; of others the start."""
    taught = not setting.config.model and setting.config.demonstrations
    return load_policy(replace(setting.config, demonstrations=0)) if taught else setting.start


def imitation(setting: Setting) -> list[Stage]:
    """One round of so many gradient steps on demonstrations, where there are some."""
    from ...rewards.reward import Reward
    from ...trainers.actors import Demonstrations
    from ...trainers.objectives import WeightedImitation

    config: Any = setting.config
    if not setting.encoded or not config.imitation_steps:
        return []
    taught = replace(setting, config=replace(config, epochs=1, minibatches=config.imitation_steps))
    learner = taught.learner(WeightedImitation(), dropout=True, anchors=None)
    actor: Any = Demonstrations(setting.policy, setting.encoded, config.imitation_steps * config.sft_batch_size)
    return [taught.stage(learner, Reward(nothing), actor=actor, steps=1, tasks_per_step=1, group_size=1, gate=None)]
