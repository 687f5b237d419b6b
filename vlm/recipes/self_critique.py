"""One model answers, looks again at what its answers point at, and imitates what stands; tasks carry no labels.

Paper: none, a method of this project.
Faithful: nothing is claimed. The solver points at cells and answers; the verifier looks at each cell again with the
start's own eyes, frozen; ``--learn`` chooses what is made of it. standing: what stands of a question's attempts,
repaired where one saw what another overlooked, is imitated. outcome: a clipped policy gradient on agreement with it.
process: the same on that and on a score per step, and who said something that does not stand is asked again:

    g = alpha * outcome + mean_t gamma^(t-1) r_t,  r_t = score_t conf_t - g_t C,  g_t = sigmoid(kappa (tau - conf_t)),

a form recalled from a published agent that checks itself. solver: the answers of the world's own solver on what the
start reads are imitated instead, which is the most that a second look can teach, and the control beside the others.
Left out: nothing that is known.
Differs: the critic is no learned verifier. What follows from what is seen is the small world's own rule, on a reading
of cells that is perfect at the default noise: there that rule answers all held-out questions by itself. Perception is
imperfect with ``--noise 70``: 94 of 100 cells are read rightly, and the rule on that reading answers three quarters.
``--critic asking`` takes the model's own yes or no instead (with outcome). A second look at cells is known in the small
world alone: with a model or data of one's own the critic is always asked.
Labels: the small world's own rules (its claims; its solver with ``--learn solver``) at every attempt, an oracle on what
the start reads. The questions' answers are not read, the demonstrations that the start has imitated are not replayed
(``--sft-coef``), and the gate compares two views of a question.
Expected: not measured yet: the older figures are withdrawn, as views of the demonstrations asked held-out compositions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...trainers.ranges import Amount, Share
from ..setting import is_small, start
from . import grpo

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.runs.run_folder import RunFolder


IMITATES = ("standing", "solver")


def entropy(config: Config) -> float:
    """0 where what stands is imitated and 0.01 elsewhere"""
    return 0.0 if config.learn in IMITATES and not config.data else 0.01


@dataclass(frozen=True)
class Config(grpo.Config):
    """Learning rate and batch of "standing" were chosen on another split; weights of "process" are recalled."""

    SMALL: ClassVar[Mapping[str, Any]] = {"tasks_per_step": 64, "group_size": 8, "lr": 1e-3, "entropy_coef": entropy}
    TINY: ClassVar[Mapping[str, Any]] = {"gate_labels": 0}
    FIXED: ClassVar[tuple[str, ...]] = ("rewards",)

    objective: str = ""
    learn: Literal["standing", "outcome", "process", "solver"] = "standing"
    """Imitate what stands; GRPO on the outcome or on every step; or imitate the small world's solver on what the start
    reads, the control."""
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
    sft_coef: float = 0.0
    gate_labels: int = 0
    """The gate reads no label either: it asks whether two views of a picture get the same answer."""


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...errors import UsageError
    from ...rewards.reward import Reward
    from ...trainers.objectives import WeightedImitation
    from ...trainers.published import grpo as grpo_of
    from ..asking import Asking, AskingConsensus
    from ..small.critique import Solved, Standing, agreed
    from ..small.rereading import Rereading

    if config.critic == "asking" and config.learn != "outcome":
        raise UsageError("a verdict of the whole answer has no steps: --critic asking goes with --learn outcome")
    if config.learn in IMITATES and (config.objective or config.advantage):
        raise UsageError("what stands is imitated: --objective and --advantage go with --learn outcome or process")
    looks = not config.data and is_small(config)
    if not looks and config.learn in ("process", "solver"):
        raise UsageError(f"--learn {config.learn} is of the small world: with --model or --data take --learn outcome")
    setting = start(config, folder, labels=False)
    proxy = Reward(Rereading(setting.eyes), "second look") if looks else Reward(Asking(setting.start), "asked")
    if config.learn in IMITATES and looks:
        teacher = Standing if config.learn == "standing" else Solved
        actor: Any = teacher(setting.policy, setting.eyes)
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
