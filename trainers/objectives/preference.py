"""Preference losses on pairs of attempts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...types import Batch, Decisions, Evaluation
from ..metrics import Mean
from .base import Metrics, Term, sequence_sum
from .pairwise import decisions_need, pairs_of


@dataclass(frozen=True)
class DPO(Term):
    """-E[p log sigma(beta d) + (1 - p) log sigma(-beta d)], d = log pi(a)/pi_ref(a) - log pi(b)/pi_ref(b).

    Direct preference optimisation (arXiv 2305.18290, eq. 7; not checked) with soft labels p = ``batch.labels``, the
    probability that the first of a pair is better; without labels the first always is. On forward decisions it is
    Diffusion-DPO (arXiv 2311.12908, not checked) with its time weighting absorbed in beta. At the level "decision"
    every pair of decisions at the same place is a preference of its own, as in D3PO's denoising steps (arXiv
    2311.13231, not checked); a pair's loss is then the mean over the places where both decided.
    """

    beta: float = 0.1
    reference: str = "reference"
    decisions: Decisions = "sampled"
    level: Literal["sequence", "decision"] = "sequence"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"pairs", f"log_probs:{self.reference}"}) | decisions_need(self.decisions)

    @property
    def off_policy_only(self) -> tuple[str, ...]:
        return ("reference",) if self.reference == "proximal" else ()

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]:
        first, second = pairs_of(batch).unbind(1)
        log_ratio = now.log_probs - batch.log_probs[self.reference]
        if self.level == "sequence":
            log_ratio = sequence_sum(log_ratio, batch)[:, None]
            both = torch.ones(len(first), 1, dtype=torch.bool, device=first.device)
        else:
            both = batch.mask[first] & batch.mask[second]
        margins = self.beta * (log_ratio[first] - log_ratio[second])
        label = torch.ones_like(margins[:, 0]) if batch.labels is None else batch.labels.to(margins)
        each = -(label[:, None] * logsigmoid(margins) + (1 - label[:, None]) * logsigmoid(-margins))
        places = both.sum(1).clamp(min=1)
        loss = (torch.where(both, each, 0.0).sum(1) / places).sum() / batch.total("pairs")
        margin = torch.where(both, margins, 0.0).sum(1) / places
        right = (margin > 0) == (label > 0.5)
        return loss, {
            "objective/accuracy": Mean.of(right.float()),
            "objective/margin": Mean.of(margin),
        }
