"""Self-rewarding models: what recipes share that train a policy on preferences of its own.

A round is a whole DPO run. ``tasks_per_step`` questions are answered ``group_size`` times each by the policy as the
round opens (M_t); a judge makes at most one pair per question; ``epochs`` x ``minibatches`` gradient steps on the pairs
lead from M_t, which is also their reference, to M_{t+1}. ``max_steps`` counts rounds.

Importing this imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..trainers.config import POLICY_GRADIENT, grouped
from ..trainers.ranges import Positive
from .setting import LanguageConfig

if TYPE_CHECKING:
    from ..types import Learner
    from .setting import Setting


@dataclass(frozen=True)
class PreferenceConfig(LanguageConfig):
    """Rounds are fewer and longer than elsewhere, and no demonstration is replayed."""

    SMALL: ClassVar[Mapping[str, Any]] = {"tasks_per_step": 256, "group_size": 8, "lr": 5e-5}
    LOADED: ClassVar[Mapping[str, Any]] = {"tasks_per_step": 128, "group_size": 4}
    TINY: ClassVar[Mapping[str, Any]] = {"gate_labels": 0, "minibatches": 2}
    FIXED: ClassVar[tuple[str, ...]] = (*POLICY_GRADIENT, "rewards", "reference", "kl_coef", "live")

    max_steps: int = 6
    """Rounds, each a DPO run from M_t to M_{t+1}."""
    epochs: int = 1
    """Passes over a round's pairs."""
    minibatches: int | None = 16
    """Gradient steps per pass."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    entropy_coef: float = 0.0
    sft_coef: float = 0.0
    gate_every: int = 1
    gate_labels: int = 0
    beta: Positive = grouped("objective", 0.1)
    """DPO's: how strongly the policy is held to the one that opened the round."""


@dataclass(frozen=True)
class JudgedConfig(PreferenceConfig):
    """Where a judge scores answers."""

    ranker: Literal["asking", "looking"] = grouped("objective", "asking")
    """asking: the policy itself, as the round opens, is asked whether each answer is right; its P(yes) is the score.
    looking: the small world's rule on what the start reads in the cells, an oracle of what follows from what."""


def judge_of(config: JudgedConfig, setting: Setting) -> Any:
    """Who scores answers, at the weights that opened the round."""
    from .asking import Asking
    from .small.rereading import Rereading

    return Rereading(setting.eyes) if config.ranker == "looking" else Asking(setting.policy, live=True)


def dpo_learner(config: PreferenceConfig, setting: Setting, prepare: Sequence[Any]) -> Learner:
    """A DPO run per round, on the pairs that ``prepare`` makes, from the policy that opened it, its reference."""
    from ..trainers.objectives import DPO
    from ..trainers.pairing import paired

    return setting.learner(DPO(config.beta, "proximal"), prepare=[*prepare, paired])
