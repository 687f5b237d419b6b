"""What values are fitted by, to be added to a policy's objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...types import Batch, Evaluation
from .base import Metrics, Term, mean


@dataclass(frozen=True)
class ValueLoss(Term):
    """E[(V - target)^2] over the segments in which the policy decided.

    The target is ``batch.value_targets``, which the advantage sets (``advantages.GAE``). There is no factor of 1/2, as
    in Stable-Baselines3.

    Attributes:
        clip: as PPO's first implementations have it, V may move by so much from what it was as the update began, and of
            the losses of both the larger counts: max((V - target)^2, (V_old + clip(V - V_old) - target)^2). None does
            not clip.
    """

    clip: float | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"the clip of values must be above 0, got {self.clip}: None does not clip")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"values", "value_targets"})

    @property
    def off_policy_only(self) -> tuple[str, ...]:
        return () if self.clip is None else ("clip",)

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]:
        if now.values is None or batch.value_targets is None or batch.values is None:
            raise ValueError("there are no values to fit: choose a policy with the capability 'values', and GAE()")
        decided, target = batch.decided, batch.value_targets.to(now.values)
        loss, metrics = (now.values - target) ** 2, Metrics()
        if self.clip is not None:
            old = batch.values.to(now.values)
            near = old + (now.values - old).clamp(-self.clip, self.clip)
            loss = torch.maximum(loss, (near - target) ** 2)
            metrics["values/clip_fraction"] = mean((near != now.values).float(), decided)
        total = torch.where(decided, loss, 0.0).sum() / batch.total("segments")
        return total, {"values/loss": mean(loss, decided)} | metrics
