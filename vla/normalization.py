"""Running statistics of what a policy sees, for one that starts without demonstrations to take them from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..trainers.contracts import Learner
from ..trainers.normalization import RunningMeanStd
from ..types import Rollout
from .chunk_policy import ChunkPolicy
from .network import RobotNetwork


class ObservationNormalizer(Learner):
    """Keeps a network's input normalisation at the mean and standard deviation of all states that it decided on.

    As ``VecNormalize(norm_obs=True)`` of Stable-Baselines3, but between rounds, so that what was sampled is learned
    from with the very normalisation that it was sampled with; and the policy stays what it is, because the layers that
    read the states change with the statistics. Only the first statistics, after a round with none, change it. It stands
    after the policy's learner, of a policy that ``normalises``.
    """

    sees_own_rollouts_only = True

    def __init__(self, policy: ChunkPolicy) -> None:
        self.network: RobotNetwork = policy.module  # type: ignore[assignment]
        self.seen = RunningMeanStd(len(self.network.mean))

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        states = [r.payload["states"][r.payload["executed"].any(1)] for r in rollouts if not r.is_plain]
        keep = self.seen.count > 0
        own = self.network.view(torch.cat(states)) if states else torch.zeros(0, len(self.seen.mean))
        self.seen.update(own)
        if self.seen.count:
            self.network.renormalise(self.seen.mean, self.seen.var.sqrt(), keep=keep)
        return {}

    def state_dict(self) -> dict[str, Any]:
        return self.seen.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The network's own buffers are of the policy's state."""
        self.seen.load_state_dict(state)
