"""Terms to add to an objective: stay near a policy, stay undecided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...types import Batch, Evaluation
from .base import Aggregate, Metrics, Term, aggregate, k3, mean, scalars


@dataclass(frozen=True)
class KLPenalty(Term):
    """KL(pi || pi_to), per decision.

    With l = log pi - log pi_to on sampled decisions (Schulman, "Approximating KL divergence", 2020, not checked):
    "k3" is exp(-l) - 1 + l, never negative, and as a loss pulls along (1 - pi_to / pi) grad log pi;
    "k2" is l^2 / 2, whose gradient l grad log pi is, on-policy, that of the KL itself;
    "exact" is the policy's own closed form and needs the capability "kl".
    There is no "k1": l itself has gradient 0 in expectation, so as a loss it does nothing but add noise.

    ``per_dimension`` divides by the scalars of a decision, as ``PPOClip`` does. ``weights`` are of the decisions by
    their places in a rollout, one for each place, where they do not count alike.
    """

    to: str = "reference"
    estimator: Literal["k3", "k2", "exact"] = "k3"
    per_dimension: bool = True
    aggregate: Aggregate = "rollout"
    weights: tuple[float, ...] | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({f"kl:{self.to}" if self.estimator == "exact" else f"log_probs:{self.to}"})

    @property
    def off_policy_only(self) -> tuple[str, ...]:
        return ("reference",) if self.to == "proximal" else ()

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]:
        size = scalars(batch, self.per_dimension).to(now.log_probs)
        if self.estimator == "exact":
            divergence = now.kl[self.to] / size
        else:
            log_ratio = (now.log_probs - batch.log_probs[self.to]) / size
            divergence = k3(log_ratio) if self.estimator == "k3" else log_ratio**2 / 2
        weighed = divergence if self.weights is None else divergence * divergence.new_tensor(self.weights)
        loss = aggregate(weighed, batch, self.aggregate)
        return loss, {f"objective/kl_{self.to}": mean(divergence, batch.mask)}


@dataclass(frozen=True)
class Entropy(Term):
    """The policy's entropy per decision; subtract it to keep exploring."""

    per_dimension: bool = True
    aggregate: Aggregate = "rollout"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"})

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]:
        if now.entropy is None:
            raise ValueError("the policy returned no entropy: choose one with the capability 'entropy'")
        entropy = now.entropy / scalars(batch, self.per_dimension).to(now.entropy)
        loss = aggregate(entropy, batch, self.aggregate)
        return loss, {"objective/entropy": mean(entropy, batch.mask)}
