"""Imitation with weights: supervised fine-tuning, RAFT, filtered and reward-weighted imitation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...types import Batch, Decisions, Evaluation
from ..metrics import Mean
from .base import Aggregate, Metrics, Term, aggregate, mean
from .pairwise import decisions_need


@dataclass(frozen=True)
class WeightedImitation(Term):
    """-E[w log pi], w = ``batch.columns["weight"]`` per rollout, 1 without it.

    Weights of 1 are supervised fine-tuning; ``pairing.best_of_group`` makes it RAFT (arXiv 2304.06767, not checked),
    ``pairing.threshold`` filtered imitation. The divisor counts all rollouts, weighted or not.
    """

    aggregate: Aggregate = "rollout"
    decisions: Decisions = "sampled"

    @property
    def needs(self) -> frozenset[str]:
        return decisions_need(self.decisions)

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]:
        weight = batch.columns.get("weight")
        weighted = now.log_probs if weight is None else weight[:, None] * now.log_probs
        loss = aggregate(-weighted, batch, self.aggregate)
        metrics: Metrics = {"objective/log_prob": mean(now.log_probs, batch.mask)}
        return loss, metrics if weight is None else metrics | {"objective/weight": Mean.of(weight)}
