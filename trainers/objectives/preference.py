"""Preference losses on pairs of attempts."""

from __future__ import annotations

from dataclasses import dataclass
from math import log1p
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...types import Batch, Decisions, Evaluation
from ..metrics import Mean
from .base import Metrics, Term, mean, scalars, sequence_sum
from .pairwise import decisions_need, pairs_of


@dataclass(frozen=True)
class DPO(Term):
    """-E[p log sigma(beta d) + (1 - p) log sigma(-beta d)], d = log pi(a)/pi_ref(a) - log pi(b)/pi_ref(b).

    Direct preference optimisation (arXiv 2305.18290, eq. 7; not checked) with soft labels p = ``batch.labels``, the
    probability that the first of a pair is better; without labels the first always is. At the level "decision" every
    pair of decisions at the same place is a preference of its own, and a pair's loss is the mean over the places where
    both decided: an expectation outside the sigmoid, as D3PO has it over steps and Diffusion-DPO over levels of noise.

    ==============  =============================================================================================
    Diffusion-DPO   ``DPO(5000, decisions="forward", level="decision", per_dimension=True)``    (arXiv 2311.12908)
    D3PO            ``DPO(0.1, level="decision", per_dimension=True, ratio_clip=0.1)``          (arXiv 2311.13231)
    ==============  =============================================================================================

    Both equal their released losses on the same tensors (SalesforceAIResearch/DiffusionDPO 5233e75, yk7333/d3po
    40d3175). A forward decision's log-probability is minus half a squared error, so there beta / 2 weighs errors.

    Attributes:
        beta: nats of d count this much; with ``per_dimension`` nats per scalar, so that one beta serves all sizes.
        per_dimension: a decision's log-ratio is the mean over its scalars instead of their sum.
        ratio_clip: a decision's ratio to the reference is clamped to 1 - ratio_clip .. 1 + ratio_clip, outside of
            which it has no gradient.
    """

    beta: float = 0.1
    reference: str = "reference"
    decisions: Decisions = "sampled"
    level: Literal["sequence", "decision"] = "sequence"
    per_dimension: bool = False
    ratio_clip: float | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"pairs", f"log_probs:{self.reference}"}) | decisions_need(self.decisions)

    @property
    def off_policy_only(self) -> tuple[str, ...]:
        return ("reference",) if self.reference == "proximal" else ()

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]:
        first, second = pairs_of(batch).unbind(1)
        log_ratio = now.log_probs - batch.log_probs[self.reference]
        log_ratio = log_ratio / scalars(batch, self.per_dimension).to(log_ratio)
        metrics: Metrics = {}
        if self.ratio_clip is not None:
            near = log_ratio.clamp(log1p(-self.ratio_clip), log1p(self.ratio_clip))
            metrics["objective/clip_fraction"] = mean((near != log_ratio).float(), batch.mask)
            log_ratio = near
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
        return loss, metrics | {
            "objective/accuracy": Mean.of(right.float()),
            "objective/margin": Mean.of(margin),
            "objective/label": Mean.of(label),
        }
