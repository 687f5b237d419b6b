"""CISPO, an objective: importance weights are clipped and detached, so that no token is dropped (arXiv 2506.13585).

autotelic run vlm/grpo --objective examples/objective.py:cispo --epochs 2
"""

from dataclasses import dataclass

from torch import where

from autotelic import GroupRelative, Term
from autotelic.trainers.metrics import Largest


@dataclass(frozen=True)
class CISPO(Term):
    """-E[sg(min(rho, 1 + clip_high)) A log pi], a mean over all decisions; the formula was not checked."""

    clip_high: float = 4.0

    @property
    def needs(self):
        return frozenset({"advantages", "log_probs:old"})

    def __call__(self, now, batch):
        old = batch.log_probs.get("proximal", batch.log_probs["behaviour"])  # before this round's first step
        weight = (now.log_probs - old).detach().exp().clamp(max=1 + self.clip_high)
        gain = where(batch.mask, weight * batch.advantages * now.log_probs, 0.0)
        loss = -gain.sum() / batch.total("decisions")
        return loss, {"objective/weight_max": Largest(weight[batch.mask].max())}


def cispo():
    """The objective, and the advantage that it brings along."""
    return CISPO(), GroupRelative()
