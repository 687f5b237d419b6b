"""Reward-difference regression: one square that is CoPG, PRDP and IPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...types import Batch, Decisions, Evaluation
from ..metrics import Mean, Paired
from .base import Metrics, Term, mean, old_log_probs, sequence_sum


@dataclass(frozen=True)
class PairwiseRegression(Term):
    """E[(d - (r_a - r_b) / beta)^2], d = log pi(a)/pi_ref(a) - log pi(b)/pi_ref(b), sums over all decisions.

    Its zero is the optimum pi_ref exp(r / beta) of reward minus beta KL, whose unknown normaliser cancels in pairs
    of one task. Any data will do, on-policy or not.

    - Times beta / 2 it has the gradient of contrastive policy gradient (CoPG, arXiv 2406.19185; derived).
    - With ``clip`` it is PRDP (arXiv 2402.08714, eq. 14 checked against the paper; its clip and beta values are
      not in the main text): every decision's log-ratio is also clipped to its old value plus or minus ``clip``,
      and a pair's loss is the larger of the two squares.
    - With ``target="preference"`` and beta = 2 tau it is IPO (arXiv 2310.12036; derived): the first of a pair is the
      winner, and 1 stands in place of the difference of returns.

    Attributes:
        beta: strength of the pull to the reference, in units of reward.
        reference: name in ``batch.log_probs``.
        clip: per decision, in nats (not divided by the dimensions, as the sums are not).
        decisions: "forward" regresses on the scores of forward decisions.
        target: the difference of "returns", or "preference".
    """

    beta: float
    reference: str = "reference"
    clip: float | None = None
    decisions: Decisions = "sampled"
    target: Literal["returns", "preference"] = "returns"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be positive, got {self.beta}")

    @property
    def needs(self) -> frozenset[str]:
        old = set() if self.clip is None else {"log_probs:old"}
        return frozenset({"pairs", f"log_probs:{self.reference}"} | old) | decisions_need(self.decisions)

    @property
    def off_policy_only(self) -> tuple[str, ...]:
        return () if self.clip is None else ("clip",)

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]:
        first, second = pairs_of(batch).unbind(1)
        returns = batch.returns.to(now.log_probs)
        wanted = returns[first] - returns[second] if self.target == "returns" else torch.ones_like(returns[first])
        target = wanted / self.beta

        reference = batch.log_probs[self.reference]
        log_ratio = now.log_probs - reference
        whole = sequence_sum(log_ratio, batch)
        predicted = whole[first] - whole[second]
        per_pair = (predicted - target) ** 2
        metrics: Metrics = {
            "objective/correlation": Paired.of("correlation", predicted, target),
            f"objective/log_ratio_{self.reference}": Mean.of(whole),
        }
        if self.clip is not None:
            old = old_log_probs(batch) - reference
            near = torch.minimum(torch.maximum(log_ratio, old - self.clip), old + self.clip)
            whole = sequence_sum(near, batch)
            per_pair = torch.maximum(per_pair, (whole[first] - whole[second] - target) ** 2)
            metrics["objective/clip_fraction"] = mean((near != log_ratio).float(), batch.mask)
        loss = per_pair.sum() / batch.total("pairs")
        return loss, metrics


def decisions_need(decisions: Decisions) -> frozenset[str]:
    """The need that asks the learner to collate forward decisions."""
    return frozenset({"forward"} if decisions == "forward" else ())


def pairs_of(batch: Batch) -> Tensor:
    """[P, 2] the batch's pairs.

    Raises:
        ValueError: nobody filled them.
    """
    if batch.pairs is None:
        raise ValueError("batch.pairs is empty: prepare it with pairing.all_pairs, best_worst or preference_pairs")
    return batch.pairs
