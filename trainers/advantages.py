"""Advantages: how much better an attempt was than its comparison set.

Each maps a batch to [B, T], zero where the mask is False. The comparison sets are the rows of
``batch.groups`` ([M, B] bool), any incidence: one row per task is GRPO, one row for everything is a batch
baseline, overlapping rows are set-wise methods. A rollout's advantage is the mean over the rows that hold it.

A return of NaN (does not apply) is left out of every statistic and gets advantage 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..types import Batch
from .contracts import Advantage
from .distributed import reduce_sum
from .metrics import Mean, Paired


@dataclass(frozen=True)
class GroupRelative(Advantage):
    """(r - baseline) / scale within each group, averaged over the groups of a rollout.

    ``scale="group"`` divides by max(std, std_floor) + eps, the group's standard deviation, and "batch" by that of all
    returns, on all processes together, as TRL's ``scale_rewards`` and Flow-GRPO's released configurations do. It is
    the unbiased one (N - 1), as torch.std and so the public GRPO implementations compute it; the paper's formula leaves
    this open. A floor keeps a group whose rewards hardly differ from shouting as loudly as one with great differences.
    ``baseline="leave_one_out"`` compares with the mean of the *other* members: RLOO (arXiv 2402.14740, not checked).
    ``per_segment=True`` gives each segment its own reward-to-go, compared with the members that have that segment.
    ``clip_max`` clamps advantages to -clip_max .. clip_max (DDPO's and Flow-GRPO's code: 5). Within groups of N by
    their own standard deviation none exceeds (N - 1) / sqrt(N).

    A group whose members all got the same return contributes exactly 0.

    Raises:
        ValueError: a group holds a single rollout, so there is nothing to compare it with.
    """

    compares = True

    scale: Literal["group", "batch", "none"] = "group"
    baseline: Literal["mean", "leave_one_out"] = "mean"
    std_floor: float = 0.0
    eps: float = 1e-6
    per_segment: bool = False
    clip_max: float | None = None

    def check(self, group_size: int) -> None:
        """Refuse a group size that leaves nothing to compare, when the run is built."""
        if group_size < 2:
            raise ValueError(
                f"a group-relative advantage compares rollouts: sample 2 or more per task, not {group_size}"
            )

    def metrics(self, batch: Batch) -> dict[str, float]:
        """The share of groups from which nothing can be learned."""
        spreadless = zero_spread(batch, self.per_segment)
        return {"groups/zero_spread": Mean.of(spreadless.float())} if len(spreadless) else {}

    def __call__(self, batch: Batch) -> Tensor:
        alone = (batch.groups.sum(1) == 1).nonzero().flatten().tolist()
        if alone:
            row = int(batch.groups[alone[0]].nonzero()[0])
            raise ValueError(f"group {alone[0]} holds one rollout (row {row}): sample 2 or more per task, or drop it")
        stats = _GroupStatistics.of(batch, self.per_segment)
        centred = stats.centred
        if self.baseline == "leave_one_out":
            n = stats.count[:, None]
            centred = centred * n / (n - 1).clamp(min=1)
        if self.scale != "none":
            std = stats.std if self.scale == "group" else _std_of_all(batch).expand_as(stats.std)
            centred = centred / (std.clamp(min=self.std_floor) + self.eps)[:, None]
        centred = torch.where(stats.members & stats.spread[:, None], centred, 0.0)
        advantage = centred.sum(0) / stats.members.sum(0).clamp(min=1)
        if self.clip_max is not None:
            advantage = advantage.clamp(-self.clip_max, self.clip_max)
        return _to_decisions(advantage, batch)


def grpo(std_floor: float = 0.0) -> GroupRelative:
    """(r - mean) / std: GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1; not checked)."""
    return GroupRelative(std_floor=std_floor)


def dr_grpo() -> GroupRelative:
    """r - mean: Dr.GRPO (arXiv 2503.20783, not checked)."""
    return GroupRelative(scale="none")


def rloo() -> GroupRelative:
    """r - mean of the others: RLOO (arXiv 2402.14740, not checked)."""
    return GroupRelative(scale="none", baseline="leave_one_out")


@dataclass(frozen=True)
class ReinforcePlusPlus(Advantage):
    """Returns normalised over all decisions of the batch, on all processes together.

    REINFORCE++ (arXiv 2501.03262, not checked): (A - mean) / (std + eps), every decision counting once, so that
    long attempts weigh more in the statistics. ``baseline="group"`` subtracts the group mean first (its -baseline
    variant). The paper's per-token KL lives in the reward: with ``shaping.PerTokenKL`` every decision gets the reward
    and the sum of the shaping from it on.
    """

    baseline: Literal["none", "group"] = "none"
    eps: float = 1e-8

    def check(self, group_size: int) -> None:
        """Refuse a group size that the group baseline cannot compare, when the run is built."""
        if self.baseline == "group":
            dr_grpo().check(group_size)

    def __call__(self, batch: Batch) -> Tensor:
        plain = replace(batch, shaping=None)
        returns = plain.returns[:, None]
        valid = returns.isfinite()
        values = _to_decisions(torch.where(valid, returns, 0.0), batch)
        if self.baseline == "group":
            values = dr_grpo()(plain)
        if batch.shaping is not None:  # a decision answers for what comes from it on
            values = (values + batch.shaping.flip(1).cumsum(1).flip(1)) * batch.mask
        return _standardised(values, batch.mask & valid, self.eps).to(returns.dtype)


@dataclass(frozen=True)
class GAE(Advantage):
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16; not checked), per segment.

    delta_s = r_s + gamma V_(s+1) - V_s and A_s = delta_s + gamma lambda A_(s+1), where V is ``batch.values``, r_s all
    that a segment was paid, shaping included, and s + 1 the next segment in which the policy decided. After the last
    one there is nothing, or ``batch.last_values`` where the rollout was truncated. Values are fitted to A + V, so
    lambda = 1 fits them to what came and lambda = 0 to one step ahead.

    Attributes:
        gamma, gae_lambda: per segment: of a robot, per chunk of actions.
        normalize: (A - mean) / (std + 1e-8) over the segments of the batch, on all processes together.
    """

    needs = frozenset({"values"})

    gamma: float = 0.99
    gae_lambda: float = 0.95
    normalize: bool = True

    def metrics(self, batch: Batch) -> dict[str, float]:
        """The share of the targets' variance that the values explained, and the mean of both."""
        if batch.values is None or batch.value_targets is None:
            return {}
        old, target = (part[batch.decided] for part in (batch.values, batch.value_targets))
        means = {"values/mean": Mean.of(old), "values/target_mean": Mean.of(target)}
        return {"values/explained_variance": Paired.of("explained", old, target), **means}

    def value_targets(self, batch: Batch) -> Tensor:
        """[B, S] A + V, zero where nothing was decided."""
        values = values_of(batch)
        return torch.where(batch.decided, self.estimates(batch).to(values) + values, 0.0)

    def __call__(self, batch: Batch) -> Tensor:
        found = self.estimates(batch)
        if self.normalize:
            found = _standardised(found, batch.decided, 1e-8)
        return found.to(batch.rewards["total"].dtype).gather(1, batch.segments.clamp(min=0)) * batch.mask

    def estimates(self, batch: Batch) -> Tensor:
        """[B, S] float64, as they are before they are normalised; zero where nothing was decided."""
        values, decided = values_of(batch).double(), batch.decided
        paid = _paid(batch).double()
        estimates = torch.zeros_like(values)
        gain = after = torch.zeros_like(values[:, 0])
        follows = after if batch.last_values is None else batch.last_values.double()
        for s in reversed(range(values.shape[1])):
            here, reward = decided[:, s], paid[:, s] + after
            delta = reward + self.gamma * follows - values[:, s]
            gain = torch.where(here, delta + self.gamma * self.gae_lambda * gain, gain)
            follows = torch.where(here, values[:, s], follows)
            after = torch.where(
                here, 0.0, reward
            )  # what the environment's own segments pay is due to the decision before
            estimates[:, s] = gain * here
        return estimates


def values_of(batch: Batch) -> Tensor:
    """[B, S] the batch's values.

    Raises:
        ValueError: nobody filled them.
    """
    if batch.values is None:
        raise ValueError(
            "batch.values is empty: the learner fills it for an advantage that needs values, such as GAE()"
        )
    return batch.values


def zero_spread(batch: Batch, per_segment: bool = False) -> Tensor:
    """[M] bool: groups whose members all got the same return, from which nothing can be learned."""
    return ~_GroupStatistics.of(batch, per_segment).spread.any(1)


def drop_zero_spread(batch: Batch) -> Batch:
    """Leave out the rollouts of groups without spread, from the divisor too; a learner's ``prepare``.

    Half of DAPO's dynamic sampling (arXiv 2503.14476, not checked), which refills the batch as well. It makes steps
    larger where most groups have no spread.
    """
    return batch.select(informative(batch).nonzero()[:, 0])


def informative(batch: Batch, per_segment: bool = False) -> Tensor:
    """[B] bool: rollouts that are in at least one group with spread."""
    return (batch.groups & ~zero_spread(batch, per_segment)[:, None]).any(0)


@dataclass(frozen=True, eq=False)
class _GroupStatistics:
    """K = 1 (the return) or S (rewards-to-go). members, centred: [M, B, K]; count, std, spread: [M, K]."""

    members: Tensor
    centred: Tensor
    count: Tensor
    std: Tensor
    spread: Tensor

    @classmethod
    def of(cls, batch: Batch, per_segment: bool) -> _GroupStatistics:
        values = _rewards_to_go(batch) if per_segment else batch.returns[:, None]
        values = values.double()
        members = batch.groups[:, :, None] & values.isfinite()
        count = members.sum(1)
        mean = torch.where(members, values, 0.0).sum(1) / count.clamp(min=1)
        centred = torch.where(members, values - mean[:, None], 0.0)
        std = ((centred**2).sum(1) / (count - 1).clamp(min=1)).sqrt()
        # Not std > 0: the mean of equal numbers may differ from them in the last bit.
        highest = torch.where(members, values, -torch.inf).amax(1)
        lowest = torch.where(members, values, torch.inf).amin(1)
        return cls(members, centred, count, std, highest > lowest)


def _rewards_to_go(batch: Batch) -> Tensor:
    """[B, S] sum of this and later segments' rewards; NaN for segments a rollout did not have."""
    to_go = _paid(batch).flip(1).cumsum(1).flip(1)
    return torch.where(batch.decided & ~batch.returns.isnan()[:, None], to_go, torch.nan)


def _paid(batch: Batch) -> Tensor:
    """[B, S] each segment's reward and shaping, zero where nothing applies."""
    paid = batch.rewards["total"].nan_to_num(0.0)
    if batch.shaping is None:
        return paid
    return paid.scatter_add(1, batch.segments.clamp(min=0), batch.shaping.to(paid))


def _standardised(values: Tensor, counted: Tensor, eps: float) -> Tensor:
    """(x - mean) / (std + eps) in float64 over what counts on all processes together, zero elsewhere."""
    values = values.double()
    mean, std = _moments(values, counted)
    return (values - mean) / (std + eps) * counted


def _std_of_all(batch: Batch) -> Tensor:
    """The standard deviation of all returns, on all processes together."""
    returns = batch.returns.double()
    return _moments(returns.nan_to_num(0.0), returns.isfinite())[1]


def _moments(values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (N - 1) in float64 of what counts, on all processes together.

    In float64, statistics do not depend on how rollouts are spread over processes.
    """
    weight = counted.double()
    n, total = reduce_sum(torch.stack([weight.sum(), (values * weight).sum()])).unbind()
    mean = total / n.clamp(min=1)
    variance = reduce_sum(((values - mean) ** 2 * weight).sum()) / (n - 1).clamp(min=1)
    return mean, variance.sqrt()


def _to_decisions(values: Tensor, batch: Batch) -> Tensor:
    """[B, 1] or [B, S] -> [B, T], zero where the mask is False."""
    index = batch.segments.clamp(min=0) if values.shape[1] > 1 else torch.zeros_like(batch.segments)
    return values.gather(1, index).to(batch.rewards["total"].dtype) * batch.mask
