"""Preference losses on pairs of attempts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...types import Batch, Decisions, Evaluation
from .base import Metrics, Term, sequence_sum
from .pairwise import decisions_need, pairs_of


@dataclass(frozen=True)
class DPO(Term):
    """-E[p log sigma(beta d) + (1 - p) log sigma(-beta d)], d = log pi(a)/pi_ref(a) - log pi(b)/pi_ref(b).

    Direct preference optimisation (arXiv 2305.18290, eq. 7; not checked) with soft labels p = ``batch.labels``, the
    probability that the first of a pair is better; without labels the first always is. On forward decisions it is
    Diffusion-DPO (arXiv 2311.12908, not checked) with its time weighting absorbed in beta.
    """

    beta: float = 0.1
    reference: str = "reference"
    decisions: Decisions = "sampled"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"pairs", f"log_probs:{self.reference}"}) | decisions_need(self.decisions)

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]:
        first, second = pairs_of(batch).unbind(-1)
        log_ratio = sequence_sum(now.log_probs - batch.log_probs[self.reference], batch)
        margin = self.beta * (log_ratio[first] - log_ratio[second])
        label = torch.ones_like(margin) if batch.labels is None else batch.labels.to(margin)
        per_pair = -(label * logsigmoid(margin) + (1 - label) * logsigmoid(-margin))
        loss = per_pair.sum() / batch.total("pairs")
        right = (margin > 0) == (label > 0.5)
        return loss, {
            "objective/loss": loss.item(),
            "objective/accuracy": right.float().sum().item() / max(1, len(right)),
            "objective/margin": margin.sum().item() / max(1, len(margin)),
        }
