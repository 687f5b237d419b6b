"""Whether a policy still means, when it learns, what it meant when it sampled."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import UsageError
from ..types import Policy, Rollout
from .distributed import gather

ROLLOUTS = 16
EVERY = 50
"""Updates from one look to the next; the first update is looked at."""
TOLERANCE = 1e-4
"""Nats per scalar of a decision that two readings in single precision may differ by."""


def check_drift(policy: Policy, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Evaluate some rollouts again with the weights that sampled them: "drift/log_probs", the largest difference.

    Every process takes part. What differs at equal weights is a ratio that no clipping knows of: a model whose
    positions depend on how much it reads, a server with penalties of its own, a cache that is wrong.

    Args:
        rollouts: of this update; those without log-probabilities, those trained in another context and those whose
            ``version`` says that other weights sampled them are passed over.

    Raises:
        UsageError: in single precision, where a difference has no excuse, it is more than ``TOLERANCE``.
    """
    sampled = [r for r in rollouts if r.log_probs is not None and r.train_task is None and not r.version]
    sampled = [r for r in sampled if bool(r.mask.any())][:ROLLOUTS]
    largest = 0.0
    if sampled:
        batch = policy.collate(sampled)
        with torch.no_grad():
            again = policy.evaluate_actions(batch).log_probs
        difference = ((again - batch.log_probs["behaviour"]).abs() / batch.dims)[batch.mask]
        largest = float(difference.nan_to_num(nan=torch.inf).max())
    largest = max(gather([largest]))
    if policy.precision in (torch.float32, torch.float64) and largest > TOLERANCE:
        raise UsageError(
            f"{type(policy).__name__} samples and learns with log-probabilities that differ by {largest:.2g} nats at "
            "the same weights: positions that depend on the length read, a server's penalties, or a wrong cache do that"
        )
    return {"drift/log_probs": largest}
