"""A reward with gradient that is asked once a round: what it says is logged, and its gradient kept for the update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..calling import MADE, call, settled
from ..returned import scores_of
from ..types import Rollout, Score
from .reward import Reward


class GradientKept:
    """Another reward, whose gradient with respect to the pictures that it scored last is kept.

    A score has to depend on its own picture alone; the sum's gradient is then every score's.

    Args:
        reward: differentiable.
    """

    differentiable = True

    def __init__(self, reward: Reward) -> None:
        self.reward, self.name, self.families = reward, reward.name, reward.families
        self.minimum, self.terms = reward.minimum, reward.terms
        self._kept: dict[int, tuple[Rollout, Tensor, Tensor]] = {}

    def __call__(self, outputs: Tensor, rollouts: Sequence[Rollout], **columns: Any) -> Mapping[str, Sequence[Score]]:
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            table = columns | {"rollouts": rollouts} | dict.fromkeys(MADE, leaf)
            named = scores_of(self.name, settled([lambda: call(self.reward, table)])[0], table)
            total = [score for score in named["total"] if isinstance(score, Tensor)]
            if len(total) == len(rollouts):
                values = torch.stack(total)
                (gradient,) = torch.autograd.grad(values.sum(), leaf)
                rows = zip(rollouts, values.detach(), gradient, strict=True)
                self._kept = {id(rollout): (rollout, value, slope) for rollout, value, slope in rows}
        return named

    def of(self, rollouts: Sequence[Rollout], pictures: Tensor) -> Tensor | None:
        """Scores [B] with gradient to the pictures, if they are the ones that were scored last; else None."""
        found = [self._kept.get(id(rollout)) for rollout in rollouts]
        kept = [each for each in found if each is not None]
        if len(kept) < len(found):
            return None
        scored = torch.stack([rollout.output for rollout, _, _ in kept]).to(pictures)
        if not torch.equal(scored, pictures.detach()):
            return None
        values, gradient = (torch.stack(part).to(pictures) for part in list(zip(*kept, strict=True))[1:])
        return values + ((pictures - pictures.detach()) * gradient).flatten(1).sum(1)
