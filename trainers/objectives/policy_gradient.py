"""Policy gradients: REINFORCE, and the clipped surrogate behind PPO, GRPO, Dr.GRPO, DAPO and GSPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...types import Batch, Evaluation
from ..metrics import Largest
from .base import MAX_LOG_RATIO, Aggregate, Level, Metrics, Term, aggregate, mean, old_log_probs, scalars, told_kl


@dataclass(frozen=True)
class Reinforce(Term):
    """-E[A log pi]: the plain score-function gradient (Williams 1992), for data sampled by the present weights."""

    aggregate: Aggregate = "rollout"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"advantages"})

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]:
        loss = aggregate(-advantages_of(batch) * now.log_probs, batch, self.aggregate)
        return loss, {}


@dataclass(frozen=True)
class PPOClip(Term):
    """-E[min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)], rho = pi / pi_old.

    PPO (arXiv 1707.06347, eq. 7; not checked). pi_old is the clip centre. The published
    variants are choices of the fields (numbers recalled, not checked):

    ========  ==============================================================================
    GRPO      ``PPOClip()`` with ``advantages.grpo()``                      (arXiv 2402.03300)
    Dr.GRPO   ``PPOClip(aggregate=max_length)``, ``advantages.dr_grpo()``   (arXiv 2503.20783)
    DAPO      ``PPOClip(clip_high=0.28, aggregate="decision")``             (arXiv 2503.14476)
    GSPO      ``PPOClip(3e-4, 4e-4, level="sequence")``                     (arXiv 2507.18071)
    ========  ==============================================================================

    Attributes:
        centre: "proximal" is the policy as the update began, evaluated once on what is trained; "behaviour" who
            sampled; "auto" is the former where it is there (as for rollouts trained in another context than they were
            sampled in), else the latter. Without ``importance_cap`` nothing is weighted.
        clip_low, clip_high: ``batch.columns`` of the same names ([B]) replace them per sample.
        level: what shares a ratio. "segment" and "sequence" use the geometric mean over their decisions, with
            the gradient through all of them.
        per_dimension: the log-ratio is a mean over the scalars of a decision instead of their sum. A sum
            saturates: at 0.05 sigma of drift per dimension, 0 / 13 / 59 / 99 % of samples leave [0.8, 1.2] for
            1 / 7 / 56 / 4,096 dimensions. It also divides the gradient by the dimensions.
        dual_clip: bounds the loss of a negative advantage at dual_clip * |A| (> 1; arXiv 1912.09729, not checked).
        importance_cap: with both "proximal" and "behaviour" present, weigh each decision by their ratio, at most
            this (decoupled PPO, arXiv 2110.00641, not checked; the truncation is common practice).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    level: Level = "decision"
    per_dimension: bool = True
    dual_clip: float | None = None
    importance_cap: float | None = None
    aggregate: Aggregate = "rollout"
    centre: Literal["auto", "proximal", "behaviour"] = "auto"

    def __post_init__(self) -> None:
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip must be above 1, got {self.dual_clip}: 1 would clip on-policy data")

    @property
    def needs(self) -> frozenset[str]:
        centre = {"log_probs:old" if self.centre == "auto" else f"log_probs:{self.centre}"}
        both = set() if self.importance_cap is None else {"log_probs:proximal", "log_probs:behaviour"}
        return frozenset({"advantages"} | centre | both)

    @property
    def off_policy_only(self) -> tuple[str, ...]:
        """What is not as in plain GRPO, of what acts through ratios."""
        chosen = {
            "clip_low": self.clip_low != PPOClip.clip_low,
            "clip_high": self.clip_high != PPOClip.clip_high,
            "level": self.level != PPOClip.level,
            "dual_clip": self.dual_clip is not None,
        }
        return tuple(name for name, differs in chosen.items() if differs)

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]:
        advantages = advantages_of(batch)
        old = old_log_probs(batch) if self.centre == "auto" else batch.log_probs[self.centre]
        log_ratio = level_log_ratio(now.log_probs - old, batch, self.level, self.per_dimension)
        ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        low = 1 - _own(self.clip_low, batch.columns.get("clip_low"), ratio)
        high = 1 + _own(self.clip_high, batch.columns.get("clip_high"), ratio)
        clipped = torch.minimum(torch.maximum(ratio, low), high)
        gain = torch.minimum(ratio * advantages, clipped * advantages)
        if self.dual_clip is not None:
            gain = torch.where(advantages < 0, torch.maximum(gain, self.dual_clip * advantages), gain)
        if self.importance_cap is not None:
            drift = batch.log_probs["proximal"] - batch.log_probs["behaviour"]
            drift = level_log_ratio(drift, batch, self.level, self.per_dimension)
            gain = gain * drift.clamp(max=MAX_LOG_RATIO).exp().clamp(max=self.importance_cap)
        loss = aggregate(-gain, batch, self.aggregate)
        active = ((ratio > high) & (advantages > 0)) | ((ratio < low) & (advantages < 0))
        return loss, {
            "objective/clip_fraction": mean(active.float(), batch.mask),
            "objective/kl": mean(told_kl(-log_ratio), batch.mask),  # of the old from the new: the old sampled
            "objective/ratio_max": Largest(torch.where(batch.mask, ratio.detach(), 0.0).max()),
        }


def advantages_of(batch: Batch) -> Tensor:
    """[B, T] the batch's advantages.

    Raises:
        ValueError: nobody filled them.
    """
    if batch.advantages is None:
        raise ValueError("batch.advantages is empty: give the learner an advantage, such as advantages.grpo()")
    return batch.advantages


def level_log_ratio(log_ratio: Tensor, batch: Batch, level: Level, per_dimension: bool) -> Tensor:
    """[B, T] mean log-ratio of what each decision shares its ratio with: itself, its segment or its sequence."""
    size = scalars(batch, per_dimension).to(log_ratio)
    if level == "decision":
        return log_ratio / size
    index = batch.segments.clamp(min=0) if level == "segment" else torch.zeros_like(batch.segments)
    zeros = log_ratio.new_zeros(len(batch), int(index.max()) + 1)
    total = zeros.scatter_add(1, index, torch.where(batch.mask, log_ratio, 0.0))
    count = zeros.scatter_add(1, index, torch.where(batch.mask, size, 0.0))
    return (total / count.clamp(min=1)).gather(1, index)


def _own(value: float, column: Tensor | None, ratio: Tensor) -> Tensor:
    """[B, 1] each sample's own clip where the batch has the column, else the objective's."""
    return torch.full_like(ratio[:, :1], value) if column is None else column[:, None].to(ratio)
