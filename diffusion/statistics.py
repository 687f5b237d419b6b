"""What a prompt's pictures scored so far, by which DDPO normalises their rewards."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..trainers.contracts import Advantage, Learner
from ..trainers.distributed import gather
from ..trainers.metrics import Mean
from ..trainers.scoring import total_of
from ..types import Batch, Rollout

EPS = 1e-6


class PromptStatistics(Learner, Advantage):
    """(r - mean) / std over a prompt's latest rewards, those of this round among them; all processes' together.

    Per-prompt statistics of DDPO's code (kvablack/ddpo-pytorch 1958463, both run on the same rewards): standard
    deviations are of the population. A prompt with too few rewards takes the mean and the deviation of the whole round,
    prompts unlike each other among them. It is a learner that stands before the policy's, so that checkpoints and
    rollback restore it, and the advantage of that one.

    Args:
        buffer_size: rewards that are remembered of each prompt.
        min_count: least rewards of a prompt for statistics of its own.
        clip_max: advantages are clamped to -clip_max .. clip_max; None leaves them.
    """

    sees_own_rollouts_only = True

    def __init__(self, buffer_size: int = 16, min_count: int = 16, clip_max: float | None = None) -> None:
        self.buffer_size, self.min_count, self.clip_max = buffer_size, min_count, clip_max
        self.rewards: dict[str, deque[float]] = {}
        self.round: list[float] = []

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        told = [(str(rollout.task.prompt), total_of(rollout)) for rollout in rollouts]
        known = [(prompt, value) for prompt, value in gather(told) if value is not None and math.isfinite(value)]
        self.round = [value for _, value in known]
        for prompt, value in known:
            self.rewards.setdefault(prompt, deque(maxlen=self.buffer_size)).append(value)
        prompts = {prompt for prompt, _ in known}
        own = sum(len(self.rewards[prompt]) >= self.min_count for prompt in prompts)
        return {"prompts/own_statistics": own / len(prompts)} if prompts else {}

    def __call__(self, batch: Batch) -> Tensor:
        returns = batch.returns.double()
        rollouts = batch.payload.get("rollouts", [])
        moments = [self._moments(str(rollout.task.prompt)) for rollout in rollouts] or [(0.0, 1.0)] * len(returns)
        mean, std = torch.tensor(moments, dtype=torch.float64).unbind(1)
        advantage = ((returns - mean) / (std + EPS)).nan_to_num(0.0)
        if self.clip_max is not None:
            advantage = advantage.clamp(-self.clip_max, self.clip_max)
        return advantage[:, None].to(batch.returns.dtype) * batch.mask

    def metrics(self, batch: Batch) -> dict[str, float]:
        """The mean size of advantages."""
        return {} if batch.advantages is None else {"advantages/size": Mean.of(batch.advantages.abs().amax(1))}

    def _moments(self, prompt: str) -> tuple[float, float]:
        own = self.rewards.get(prompt, ())
        counted = torch.tensor(list(own) if len(own) >= self.min_count else self.round, dtype=torch.float64)
        return (float(counted.mean()), float(counted.std(correction=0))) if len(counted) else (0.0, 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"prompts": list(self.rewards), "rewards": [list(values) for values in self.rewards.values()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pairs = zip(state["prompts"], state["rewards"], strict=True)
        self.rewards = {prompt: deque(values, maxlen=self.buffer_size) for prompt, values in pairs}
