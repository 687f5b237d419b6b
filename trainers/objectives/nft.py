"""Negative-aware fine-tuning: likelihood of the right, and of the wrong under the policy's implicit negative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...types import Batch, Evaluation
from ..metrics import Largest, Mean
from ..pairing import optimality, pass_rate
from .base import Aggregate, Metrics, Term, aggregate, mean, old_log_probs, scalars, told_kl

CAP = 10.0
PASS_RATE_RANGE = (0.02, 0.98)
FLOOR = 1.0


@dataclass(frozen=True)
class NFT(Term):
    """-E[omega (c log R + (1 - c) log floor((1 - r R) / (1 - r)))], R = pi / pi_old per decision.

    NFT (arXiv 2505.18116; formula and constants checked against the code, NVlabs/NFT). A group's pass rate r splits
    pi_old into r pi+ + (1 - r) pi-; with pi+ := pi, wrong attempts raise the likelihood of the implied pi-. The floor
    (1) is straight-through: it bounds the value, the gradient is that of the unfloored ratio. r is clamped to
    [0.02, 0.98], log R to at most 10. Groups that are all right or all wrong contribute 0, as in the code, which
    filters them; its divisor, 1000 per rollout, is ``aggregate=1000``.

    On-policy its gradient is Dr.GRPO's for ``normalise="pass_rate"`` (omega = 1 - r) and GRPO's, with the biased
    standard deviation, for "std" (omega = sqrt((1 - r) / r)).

    Attributes:
        threshold: c = 1 where the return is above it.
        negatives: weight of the wrong attempts; 0 is rejection fine-tuning.
        per_dimension: as in ``PPOClip``.

    r is ``batch.columns["pass_rate"]`` where ``pairing.pass_rate`` filled it, else computed from whole groups.
    """

    normalise: Literal["pass_rate", "std", "none"] = "pass_rate"
    threshold: float = 0.5
    negatives: float = 1.0
    per_dimension: bool = True
    aggregate: Aggregate = "rollout"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_probs:old"})

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]:
        if "pass_rate" not in batch.columns:
            batch = pass_rate(batch, self.threshold)
        raw = batch.columns["pass_rate"].to(now.log_probs)
        rate = raw.clamp(*PASS_RATE_RANGE)[:, None]
        right = (batch.returns > self.threshold)[:, None]
        omegas = {"pass_rate": 1 - rate, "std": ((1 - rate) / rate).sqrt(), "none": torch.ones_like(rate)}
        omega = omegas[self.normalise]
        counts = ((raw > 0) & (raw < 1) & batch.returns.isfinite())[:, None]

        log_ratio = (now.log_probs - old_log_probs(batch)) / scalars(batch, self.per_dimension).to(now.log_probs)
        log_ratio = log_ratio.clamp(max=CAP)
        implied = (1 - rate * log_ratio.exp()) / (1 - rate)
        floored = implied + (implied.clamp(min=FLOOR) - implied).detach()
        gain = torch.where(right, log_ratio, self.negatives * floored.log())
        loss = aggregate(torch.where(counts, -omega * gain, 0.0), batch, self.aggregate)
        return loss, {
            "objective/floor_fraction": mean((implied < FLOOR).float(), batch.mask & ~right),
            "objective/kl": mean(told_kl(-log_ratio), batch.mask),  # of the old from the new: the old sampled
            "objective/ratio_max": Largest(torch.where(batch.mask, log_ratio.detach().exp(), 0.0).max()),
        }


@dataclass(frozen=True)
class ForwardNFT(Term):
    """DiffusionNFT on forward decisions, written in scores: no trajectory likelihood, any sampler.

    The loss (arXiv 2509.16117; checked against the code, NVlabs/DiffusionNFT) is
    r |v+ - v|^2 + (1 - r) |v- - v|^2 with v+ = (1 - beta) v_old + beta v_theta, v- = (1 + beta) v_old - beta v_theta.
    The code compares in x_0, a factor t^2, and divides by beta and by each sample's mean absolute error, detached;
    those weights are left out here.
    With l = -|v - v_theta|^2 / 2 (the log-probability of a forward decision) and k = |v_theta - v_old|^2 / 2 (its KL
    to "proximal") it equals 2 beta [(1 - 2 r) l + (1 - 2 r + beta) k] + const, which is what is computed here.

    r in [0, 1] is ``batch.columns["optimality"]`` where ``pairing.optimality`` filled it, else computed from whole
    groups. ``per_dimension`` makes squares means over the latent's scalars.
    """

    beta: float = 1.0
    per_dimension: bool = True
    aggregate: Aggregate = "rollout"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"forward", "kl:proximal"})

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]:
        if "optimality" not in batch.columns:
            batch = optimality(batch)
        r = batch.columns["optimality"].to(now.log_probs)[:, None]
        drift = now.kl["proximal"]
        per_decision = 2 * self.beta * ((1 - 2 * r) * now.log_probs + (1 - 2 * r + self.beta) * drift)
        loss = aggregate(per_decision / scalars(batch, self.per_dimension).to(per_decision), batch, self.aggregate)
        return loss, {
            "objective/kl": mean(drift, batch.mask),
            "objective/optimality": Mean.of(r),
        }
