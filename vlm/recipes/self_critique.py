"""One model answers, looks again at what its answers point at, and imitates what stands; tasks carry no labels.

The solver points at cells and answers; the verifier looks at each cell again with its own eyes, frozen at the start,
and says what stands. ``--learn`` chooses what is made of it:

* standing: what stands of a question's attempts, repaired where one attempt saw what another overlooked, is imitated;
* outcome: a clipped policy gradient on agreement with it;
* process: step rewards after Agent0-VL (2511.19900 on arXiv), recalled from released code that quotes eq. 2-5 (not
  checked against the paper): every step t has a score in -1..1 and a confidence, and

    g = alpha * outcome + sum_t gamma^(t-1) r_t,  r_t = score_t conf_t - g_t C,  g_t = sigmoid(kappa (tau - conf_t)).

  Who said something that does not stand is asked again, at the cost C of a repair. It is not Agent0-VL: the verifier
  is a rule over a reading of cells and not a role of the model, there are no tools, and no divergence of the roles is
  subtracted.

By default it is imitation, not a policy gradient, and a method of this project. What follows from what is seen is the
small world's own rule, and the start sees every cell rightly: that rule on its reading answers all held-out questions.
Demonstrations, which have answers, are imitated in every gradient step (``--sft-coef``); on one seed tried this did not
matter (47.9 to 66.6 % without). ``--critic asking`` uses a learned verdict instead (with outcome): the model is asked
"check" and says yes or no. A second look at cells is known in the small world alone: with a model or data of one's own
the critic is always asked. The settings of "standing" were chosen on another split. The figures in docs/results.md are
withdrawn until they are measured again: views of the demonstrations ask held-out compositions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...trainers.ranges import Amount, Share
from ..setting import start
from . import grpo

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


def entropy(config: Config) -> float:
    """0 where what stands is imitated and 0.01 elsewhere"""
    return 0.0 if config.learn == "standing" and not config.data else 0.01


@dataclass(frozen=True)
class Config(grpo.Config):
    """Numbers of eq. 2-5 are the paper's (recalled, not checked)."""

    SMALL: ClassVar[Mapping[str, Any]] = {"tasks_per_step": 64, "group_size": 8, "lr": 1e-3, "entropy_coef": entropy}
    TINY: ClassVar[Mapping[str, Any]] = {"gate_labels": 0}
    FIXED: ClassVar[tuple[str, ...]] = ("rewards",)

    objective: str = ""
    learn: Literal["standing", "outcome", "process"] = "standing"
    """Imitate what stands, or GRPO on the outcome or on every step."""
    critic: Literal["looking", "asking"] = "looking"
    """A second look at each cell, or the model's own yes or no to the whole answer."""
    max_steps: int = 300
    outcome: Amount = 1.0
    """alpha: weight of the outcome beside the steps."""
    gamma: Share = 0.99
    """Discount of later steps."""
    confidence: Share = 0.7
    """tau: below it an answer is repaired."""
    kappa: Amount = 10.0
    """Sharpness of the repair gate (chosen, not the paper's)."""
    repair_cost: Amount = 0.05
    """C: what being asked again costs."""
    gate_labels: int = 0
    """The gate reads no label either: it asks whether two views of a picture get the same answer."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...errors import UsageError
    from ...rewards.reward import Reward
    from ...trainers.objectives import WeightedImitation
    from ...trainers.published import grpo as grpo_of
    from ..asking import Asking, AskingConsensus
    from ..small.critique import Standing, agreed
    from ..small.rereading import Rereading

    if config.critic == "asking" and config.learn != "outcome":
        raise UsageError("a verdict of the whole answer has no steps: --critic asking goes with --learn outcome")
    if config.learn == "standing" and (config.objective or config.advantage):
        raise UsageError("what stands is imitated: --objective and --advantage go with --learn outcome or process")
    setting = start(config, folder, labels=False)
    looks = setting.questions.small_world
    proxy = Reward(Rereading(setting.eyes), "second look") if looks else Reward(Asking(setting.start), "asked")
    if config.learn == "standing" and looks:
        actor: Any = Standing(setting.policy, setting.eyes)
        learner = setting.learner(WeightedImitation(), dropout=True)
        stage = setting.stage(learner, Reward(agreed), actor=actor, proxy=proxy)
    else:
        reward, actor = critic(config, setting) if looks else (AskingConsensus(setting.start), None)
        learner = setting.learner(*grpo_of(setting.config))
        stage = setting.stage(learner, Reward(reward, "self-critique"), actor=actor, proxy=proxy)
    return setting.experiment([stage])


def critic(config: Config, setting: Any) -> tuple[Any, Any]:
    """The reward of outcome or process, and the actor that it needs, None for the policy alone."""
    from ..asking import AskingConsensus
    from ..conversation import Conversation
    from ..small.critique import StepCritique, Verifier
    from ..small.rereading import RereadingConsensus

    if config.critic == "asking":
        return AskingConsensus(setting.start), None
    outcome = RereadingConsensus(setting.eyes)
    if config.learn == "outcome":
        return outcome, None
    steps = {"gamma": config.gamma, "tau": config.confidence, "kappa": config.kappa, "cost": config.repair_cost}
    critique = StepCritique(setting.eyes, outcome, outcome=config.outcome, **steps)
    return critique, Conversation(setting.policy, Verifier(critique), turns=2)
