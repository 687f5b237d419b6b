"""Running statistics by which rewards are scaled; learners, so that checkpoints and rollback restore them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..types import Batch, Players, Rollout
from .contracts import Learner
from .distributed import reduce_sum

CLIP = 10.0
"""So many standard deviations are what a scaled reward is at most, as in Stable-Baselines3's VecNormalize."""


class RunningMeanStd:
    """Mean and variance [D] of all rows of all processes so far, in float64, merged by batches (Chan et al., 1983, not
    checked)."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean, self.squares = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)

    @property
    def var(self) -> Tensor:
        """[D] of the population; ones before there are two rows."""
        return self.squares / self.count if self.count > 1 else torch.ones_like(self.squares)

    def update(self, rows: Tensor) -> None:
        """Take in rows [N, D]; every process calls it, with its own."""
        rows = rows.detach().double().cpu()
        more, *total = reduce_sum(torch.cat([torch.tensor([len(rows)]), rows.sum(0)])).tolist()
        if not more:
            return
        mean, new = torch.tensor(total, dtype=torch.float64) / more, self.count + int(more)
        gap = mean - self.mean
        self.squares = self.squares + reduce_sum(((rows - mean) ** 2).sum(0)) + gap**2 * (self.count * more / new)
        self.mean = self.mean + gap * (more / new)
        self.count = new

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = int(state["count"])
        self.mean, self.squares = state["mean"].clone(), state["squares"].clone()


class RewardNormalizer(Learner):
    """Divides rewards by the standard deviation of the discounted return so far, in learning alone.

    As in Stable-Baselines3's ``VecNormalize(norm_reward=True)``: the return runs forward from each attempt's start,
    R_s = gamma R_(s-1) + r_s; the quotient is clipped to +-10. It stands before the policy's learner, which is given it
    as a step on its batches (``PolicyLearner(sets=[normalizer])``).
    """

    sees_own_rollouts_only = True

    def __init__(self, gamma: float, players: Players = None) -> None:  # noqa: RUF013  None is one of Players
        self.gamma, self.players, self.returns = gamma, players, RunningMeanStd(1)

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        rows = []
        for rollout in rollouts:
            score, value = rollout.scores.get("total"), 0.0
            for reward in [] if score is None else torch.as_tensor(score).double().reshape(-1).tolist():
                value = self.gamma * value + reward
                rows.append(value)
        self.returns.update(torch.tensor(rows, dtype=torch.float64)[:, None])
        return {"returns/std": self.std, "segments": float(self.returns.count)}

    @property
    def std(self) -> float:
        return float((self.returns.var + 1e-8).sqrt())

    def __call__(self, batch: Batch) -> Batch:
        scaled = (batch.rewards["total"] / self.std).clamp(-CLIP, CLIP)
        return replace(batch, rewards={**batch.rewards, "total": scaled})

    def state_dict(self) -> dict[str, Any]:
        return self.returns.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.returns.load_state_dict(state)
