"""Reward shaping: what is added to the reward of every decision, once, before advantages are computed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..types import Batch
from .contracts import Shaping
from .objectives.base import old_log_probs


@dataclass(frozen=True)
class PerTokenKL(Shaping):
    """-coef (log pi_old - log pi_to) at every decision: a KL to another policy in the reward instead of the loss.

    As PPO-based RLHF and REINFORCE++ (arXiv 2501.03262, not checked) have it. pi_old is the policy as the update began
    (who sampled, or "proximal"), so the penalty is a number, and its gradient is the policy gradient's.
    """

    coef: float
    to: str = "reference"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({f"log_probs:{self.to}", "log_probs:old"})

    def __call__(self, batch: Batch) -> Batch:
        penalty = -self.coef * (old_log_probs(batch) - batch.log_probs[self.to]) * batch.mask
        return replace(batch, shaping=penalty if batch.shaping is None else batch.shaping + penalty)
