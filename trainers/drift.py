"""Whether a policy still means, when it learns, what it meant when it sampled; and how far it went from its start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..types import Actor, Batch, Policy, Rollout
from .curricula import apart
from .distributed import gather
from .minibatches import names

if TYPE_CHECKING:
    from .loop import Stage

ROLLOUTS = 16
TASKS, ATTEMPTS = 8, 4
"""By which a divergence from the start is measured."""
SCALARS = 2**24
"""Of decisions that are looked at, for policies of which a decision has many: one chain of pictures of 1,024 pixels."""
EVERY = 50
"""Updates from one look to the next; the first update is looked at."""
TOLERANCE = 1e-4
"""Nats per scalar of a decision that two readings in single precision may differ by."""
SHAPES, LEAST = 4.0, 0.02
"""In half precision the mean gap may be so many times what batches of other shapes change, and so many nats besides."""


def check_drift(policy: Policy, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Evaluate some rollouts again with the weights that sampled them: "drift/log_probs", the largest difference.

    Every process takes part. What differs at equal weights is a ratio that no clipping knows of: a model whose
    positions depend on how much it reads, a server with penalties of its own, a cache that is wrong.

    In half precision, where products of other shapes are rounded otherwise, there are two more: "precision/gap", the
    mean difference in nats per decision, and "precision/bound", what it may be by the difference between evaluating
    these rollouts together and one by one. A gap beyond it is an alarm (``runs.alarms``).

    Args:
        rollouts: of this update; those without log-probabilities, those trained in another context and those whose
            ``version`` says that other weights sampled them are passed over.

    Raises:
        UsageError: in single precision, where a difference has no excuse, it is more than ``TOLERANCE``.
    """
    chosen = _some(policy, rollouts)
    half = policy.precision not in (torch.float32, torch.float64)
    largest, sums = 0.0, [0.0, 0.0, 0.0]  # of differences to sampling, of those to other shapes, of decisions
    if chosen:
        batch = policy.collate(chosen)
        again = _log_probs(policy, batch)
        gap = (again - batch.log_probs["behaviour"]).abs()
        largest = float((gap / batch.dims)[batch.mask].nan_to_num(nan=torch.inf).max())
        if half:
            alone = [_log_probs(policy, one)[one.mask] for one in (policy.collate([rollout]) for rollout in chosen)]
            spread = (torch.cat(alone) - again[batch.mask]).abs()
            sums = [float(gap[batch.mask].sum()), float(spread.sum()), float(batch.mask.sum())]
    told = gather([(largest, sums)])
    largest = max(each for each, _ in told)
    if not half and largest > TOLERANCE:
        raise UsageError(
            f"{type(policy).__name__} samples and learns with log-probabilities that differ by {largest:.2g} nats at "
            "the same weights: positions that depend on the length read, a server's penalties, or a wrong cache do that"
        )
    metrics = {"drift/log_probs": largest}
    gaps, spreads, decisions = (sum(column) for column in zip(*(each for _, each in told), strict=True))
    if half and decisions:
        metrics |= {"precision/gap": gaps / decisions, "precision/bound": SHAPES * spreads / decisions + LEAST}
    return metrics


def _some(policy: Policy, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """A few that these weights sampled, to be evaluated as if nothing were known of how."""
    own = [r for r in rollouts if r.log_probs is not None and r.train_task is None]
    own = [replace(r, version="", graph=None) for r in own if bool(r.mask.any()) and r.version in ("", policy.version)]
    scalars = max(gather([int(policy.collate(own[:1]).dims.sum()) if own else 0]))
    most = min(ROLLOUTS, max(1, SCALARS // max(1, scalars)))
    named = dict(zip(names(own), own, strict=True))
    first = sorted(gather(sorted(named)[:most]))[:most]  # the same ones, whichever process holds them
    return [named[name] for name in first if name in named]


def _log_probs(policy: Policy, batch: Batch) -> Tensor:
    with torch.no_grad():
        return policy.evaluate_actions(batch).log_probs


def far_from(start: Actor, stage: Stage, seed: int) -> float | None:
    """KL divergence of what a stage's policy does from what it did at the start, in nats per attempt.

    A mean over attempts of the policy as it is, on tasks of the stage's curriculum: exact per decision where the policy
    has the capability "kl", else of the log-ratio, which may then come out below zero. None where there is no
    likelihood to compare. Decisions whose likelihoods are "composite" are compared by those.

    Args:
        start: a copy of the stage's bare actor from before anything was learned.
    """
    policy, before = _inside(stage.actor.bare()), _inside(start)
    if policy is None or before is None or not policy.capabilities & {"exact", "composite"}:
        return None
    options = {name: value for name, value in stage.sampling.items() if name == "temperature"}
    with stage.guard(), torch.no_grad():
        tasks = apart(stage.curriculum.sample(TASKS))
        acted = stage.actor.evaluated().act(tasks, ATTEMPTS, key=(seed, -2), **options)
        rollouts = [replace(r, graph=None) for r in acted if r.log_probs is not None and r.train_task is None]
        found = [_nats(policy, before, rollouts[i : i + ROLLOUTS]) for i in range(0, len(rollouts), ROLLOUTS)]
    values = torch.cat(found) if found else torch.zeros(0)
    return float(values.mean()) if len(values) and bool(values.isfinite().all()) else None


def _inside(actor: Any) -> Policy | None:
    """A bare actor that is a policy, or the one that it acts by."""
    found = actor if isinstance(actor, Policy) else vars(actor).get("policy")
    return found if isinstance(found, Policy) else None


def _nats(policy: Policy, start: Policy, rollouts: Sequence[Rollout]) -> Tensor:
    """[B] of each attempt."""
    batch = policy.collate(rollouts)
    if "kl" in policy.capabilities:
        each = policy.evaluate_actions(batch, ("kl:start",), {"start": start}).kl["start"]
    else:
        each = policy.evaluate_actions(batch).log_probs - start.evaluate_actions(batch).log_probs
    return torch.where(batch.mask, each, torch.zeros_like(each)).double().sum(-1).cpu()
