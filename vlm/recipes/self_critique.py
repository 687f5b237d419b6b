"""One model answers and criticises its own answers by looking again at what they point at; no label is read.

Agent0-VL (arXiv:2511.19900): a solver and a verifier in the same weights. The solver points at cells and answers; the
verifier looks at each cell again with its own eyes, frozen at the start, and gives every step t a score in -1..1 and a
confidence. From released code that quotes eq. 2-5 (not checked against the paper):

    g = alpha * outcome + sum_t gamma^(t-1) r_t,  r_t = score_t conf_t - g_t C,  g_t = sigmoid(kappa (tau - conf_t))

The outcome is agreement with the consensus of the answers that pass the second look, and by default it is all that is
paid. ``--process`` pays the steps too, and who said something that does not stand is asked again, at the cost C of a
repair. No divergence of the roles is subtracted: the verifier's role is a reading of cells, not text.

What follows from what is seen is a rule of the small world, not learned: call it label-free, rule-based and
model-perceived. ``--critic asking`` uses a learned verdict instead: the model is asked "check" and says yes or no.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..setting import TINY
from . import grpo

if TYPE_CHECKING:
    from ...trainers.loop import Experiment
    from ...trainers.run_folder import RunFolder


@dataclass(frozen=True)
class Config(grpo.Config):
    """Numbers of eq. 2-5 are the paper's (recalled, not checked)."""

    critic: Literal["looking", "asking"] = "looking"
    """A second look at each cell, or the model's own yes or no to the whole answer."""
    process: bool = False
    """Pay steps too, by score and confidence, and ask again where an answer does not stand."""
    outcome: float = 1.0
    """alpha: weight of the outcome beside the steps."""
    gamma: float = 0.99
    confidence: float = 0.7
    """tau: below it an answer is repaired."""
    kappa: float = 10.0
    """Sharpness of the repair gate (chosen, not the paper's)."""
    repair_cost: float = 0.05
    gate_labels: int = 0
    """The gate reads no label either: it asks whether two views of a picture get the same answer."""


def debug() -> Config:
    """Two rounds in seconds."""
    return Config(**{**TINY, "gate_labels": 0})


def build(config: Config, folder: RunFolder) -> Experiment:
    from ...rewards.reward import Reward
    from ..conversation import Conversation
    from ..critique import AskingConsensus, StepCritique, Verifier
    from ..rereading import Rereading, RereadingConsensus
    from ..setting import start

    setting = start(config, labels=False)
    reward: Any = RereadingConsensus(setting.eyes)
    actor: Any = None
    if config.critic == "asking":
        reward = AskingConsensus(setting.start)
    elif config.process:
        steps = {"gamma": config.gamma, "tau": config.confidence, "kappa": config.kappa, "cost": config.repair_cost}
        critique = StepCritique(setting.eyes, reward, outcome=config.outcome, **steps)
        reward, actor = critique, Conversation(setting.policy, Verifier(critique), turns=2)
    objective, advantage = grpo.loss_of(config)
    learner = setting.learner(setting.regularised(objective), advantage=advantage)
    proxy = Reward(Rereading(setting.eyes), "second look")
    stage = setting.stage(learner, Reward(reward, "self-critique"), actor=actor, proxy=proxy)
    return setting.experiment([stage])
