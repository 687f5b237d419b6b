"""What all objectives share: how they add up, and means that are the same on one process and on many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...types import Batch, Evaluation
from ..metrics import Mean

Metrics = dict[str, float]
Aggregate = Literal["rollout", "decision"] | int
"""How [B, T] becomes a number: the mean over a rollout's decisions, then over rollouts (GRPO); the mean over all
decisions (DAPO); an integer L divides the sum over decisions by rollouts x L (Dr.GRPO's constant length)."""
Level = Literal["decision", "segment", "sequence"]

TOLD_LOG_RATIO = 3.0
"""A decision that became more than 20 times as probable counts as 16 nats."""

MAX_LOG_RATIO = 20.0
"""Beyond exp(20) a ratio says nothing more, and infinity times an advantage of 0 would be NaN."""


class Term(ABC):
    """An objective, or a part of one: ``PPOClip() + 0.01 * KLPenalty("reference") - 0.001 * Entropy()``.

    Calling it gives a loss to minimise and metrics. The loss is a sum divided by counts over all processes
    (``batch.total``), so that gradients summed over processes are those of the global mean. A metric is a number that
    knows how it adds up over processes (``mean``, and others in ``trainers.metrics``); a plain one is taken for a mean
    over rollouts. The loss itself is reported by the learner, as "objective/loss".
    """

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """What must be there: "advantages", "log_probs:NAME" ("old" is the clip centre), "pairs", "value_targets",
        "forward" in the batch; "entropy", "values", "kl:NAME" from the policy."""

    @property
    def terms(self) -> tuple[tuple[float, Term], ...]:
        """What it is a weighted sum of."""
        return ((1.0, self),)

    @property
    def off_policy_only(self) -> tuple[str, ...]:
        """Fields that have no effect in a round's first gradient step, when the policy is still the proximal one."""
        return ()

    @abstractmethod
    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]: ...

    def __add__(self, other: Term) -> Sum:
        return Sum(self.terms + other.terms)

    def __sub__(self, other: Term) -> Sum:
        return self + -1.0 * other

    def __mul__(self, weight: float) -> Sum:
        return Sum(tuple((weight * w, term) for w, term in self.terms))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Sum(Term):
    """A weighted sum of terms, with the metrics of all."""

    parts: tuple[tuple[float, Term], ...]

    @property
    def terms(self) -> tuple[tuple[float, Term], ...]:
        return self.parts

    @property
    def needs(self) -> frozenset[str]:
        return frozenset[str]().union(*(term.needs for _, term in self.parts))

    @property
    def off_policy_only(self) -> tuple[str, ...]:
        return tuple(name for _, term in self.parts for name in term.off_policy_only)

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]:
        loss, metrics = now.log_probs.new_zeros(()), Metrics()
        for weight, term in self.parts:
            value, its_metrics = term(now, batch)
            loss = loss + weight * value
            metrics |= its_metrics
        return loss, metrics


def aggregate(values: Tensor, batch: Batch, how: Aggregate) -> Tensor:
    """[B, T] -> the global mean's local share, a scalar; masked decisions count for nothing."""
    values = torch.where(batch.mask, values, 0.0)
    if how == "decision":
        return values.sum() / batch.total("decisions")
    if how == "rollout":
        return (values.sum(1) / batch.mask.sum(1).clamp(min=1)).sum() / batch.total("rollouts")
    return values.sum() / (batch.total("rollouts") * how)


def mean(values: Tensor, mask: Tensor) -> Mean:
    """The mean where the mask is True, for metrics."""
    return Mean.of(values, mask)


def old_log_probs(batch: Batch) -> Tensor:
    """[B, T] under the policy that ratios compare with: the clip centre if there is one, else who sampled."""
    return batch.log_probs.get("proximal", batch.log_probs["behaviour"])


def scalars(batch: Batch, per_dimension: bool) -> Tensor:
    """[B, T], at least 1: by how much to divide a decision's log-ratio.

    A ratio over D summed dimensions leaves any fixed clip range as D grows (see ``PPOClip``), a mean over them
    does not.
    """
    return batch.dims.clamp(min=1) if per_dimension else torch.ones_like(batch.dims)


def sequence_sum(values: Tensor, batch: Batch) -> Tensor:
    """[B, T] -> [B], over the decisions that the policy made."""
    return torch.where(batch.mask, values, 0.0).sum(1)


def told_kl(log_ratio: Tensor) -> Tensor:
    """What is told of KL(now || other), log_ratio = now - other: k3, whose exponent is TOLD_LOG_RATIO at most.

    Otherwise the exponential of a single decision would decide the mean over all the rest. Nothing learns from it.
    """
    return k3(log_ratio.clamp(min=-TOLD_LOG_RATIO))


def k3(log_ratio: Tensor) -> Tensor:
    """Schulman's non-negative estimate of KL(now || other) from samples of now; log_ratio = now - other."""
    towards = (-log_ratio).clamp(max=MAX_LOG_RATIO)
    return towards.exp() - 1 - towards
