"""What compares or selects attempts before the update: pairs, preference labels, weights, pass rates.

Each takes a batch with rewards and groups and returns it with ``pairs``, ``labels`` or a column filled in. Groups
must be whole, so this happens before a batch is cut into minibatches. Returns of NaN take no part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..errors import UsageError
from ..types import Batch
from .config import SelectionFields


def all_pairs(batch: Batch) -> Batch:
    """All C(G, 2) pairs of each group, once each; for pairwise regression."""
    pairs = [torch.combinations(members) for members in _members(batch)]
    stacked = torch.cat(pairs) if pairs else batch.segments.new_zeros(0, 2)
    return replace(batch, pairs=torch.unique(stacked, dim=0) if len(stacked) else stacked, labels=None)


def best_worst(batch: Batch) -> Batch:
    """One pair per group, the best before the worst, labelled 1; groups without spread give none."""
    pairs, returns = [], batch.returns
    for members in _members(batch):
        best, worst = members[returns[members].argmax()], members[returns[members].argmin()]
        if returns[best] > returns[worst]:
            pairs.append(torch.stack([best, worst]))
    stacked = torch.stack(pairs) if pairs else batch.segments.new_zeros(0, 2)
    return replace(batch, pairs=stacked, labels=torch.ones_like(stacked[:, 0], dtype=returns.dtype))


def paired(batch: Batch) -> Batch:
    """The rows that stand in a pair alone, so that gradient steps on pairs read nothing else."""
    assert batch.pairs is not None
    return batch.select(torch.unique(batch.pairs))


def preference_pairs(batch: Batch, temperature: float = 1.0) -> Batch:
    """All pairs with soft labels sigma((r_a - r_b) / temperature), Bradley and Terry's model of a judge."""
    batch = all_pairs(batch)
    assert batch.pairs is not None
    first, second = batch.returns[batch.pairs].unbind(1)
    return replace(batch, labels=torch.sigmoid((first - second) / temperature))


def best_of_group(batch: Batch, k: int = 1) -> Batch:
    """Column "weight": 1 for the k best of each group (the earlier one of equals), 0 for the rest."""
    returns = batch.returns
    weight = torch.zeros_like(returns)
    for members in _members(batch):
        order = returns[members].argsort(descending=True, stable=True)
        weight[members[order[:k]]] = 1.0
    return _with_column(batch, "weight", weight)


def selected(config: SelectionFields) -> Callable[[Batch], Batch]:
    """The selection that a config names, as a learner's ``prepare``.

    Raises:
        UsageError: a field belongs to the other rule.
    """
    if config.select == "threshold":
        if config.best != 1:
            raise UsageError(f"--best {config.best} has no effect with --select threshold: leave it out")
        return partial(threshold, value=0.5 if config.threshold is None else config.threshold)
    if config.threshold is not None:
        raise UsageError("--threshold has no effect with --select best: give --select threshold, or leave it out")
    return partial(best_of_group, k=config.best)


def threshold(batch: Batch, value: float) -> Batch:
    """Column "weight": 1 where the return is above the value, 0 elsewhere."""
    return _with_column(batch, "weight", (batch.returns > value).float())


def pass_rate(batch: Batch, value: float = 0.5) -> Batch:
    """Column "pass_rate": the share of a rollout's group whose return is above the value; for NFT."""
    returns = batch.returns
    return _with_column(batch, "pass_rate", _group_mean(batch, (returns > value).to(returns.dtype)))


def optimality(batch: Batch, scale: float | None = None) -> Batch:
    """Column "optimality" in [0, 1]: 1/2 + 1/2 clip((r - group mean) / scale, -1, 1); for ForwardNFT.

    Without a scale it is the largest deviation in the rollout's own groups. 1/2 where a return is NaN.
    """
    deviation = (batch.returns - _group_mean(batch, batch.returns)).nan_to_num(0.0)
    if scale is None:
        largest = (batch.groups * deviation.abs()).amax(1)
        reach = (batch.groups * largest[:, None]).amax(0).clamp(min=1e-8)
    else:
        reach = torch.full_like(deviation, scale)
    return _with_column(batch, "optimality", 0.5 + 0.5 * (deviation / reach).clamp(-1, 1))


def optimality_of_advantages(batch: Batch, clip_max: float = 5.0) -> Batch:
    """Column "optimality" in [0, 1]: 1/2 + 1/2 clip(A / clip_max, -1, 1), A a rollout's mean advantage.

    DiffusionNFT's released r (NVlabs/DiffusionNFT 24af555): an advantage of 1 makes it 0.6.
    """
    if batch.advantages is None:
        raise ValueError("batch.advantages is empty: give the learner an advantage, such as advantages.grpo()")
    mean = (batch.advantages * batch.mask).sum(1) / batch.mask.sum(1).clamp(min=1)
    return _with_column(batch, "optimality", 0.5 + 0.5 * (mean / clip_max).clamp(-1, 1))


def _members(batch: Batch) -> list[Tensor]:
    """Row numbers of each group's members with a return, for groups with two or more of them."""
    finite = batch.returns.isfinite()
    rows = ((group & finite).nonzero().flatten() for group in batch.groups)
    return [members for members in rows if len(members) > 1]


def _group_mean(batch: Batch, values: Tensor) -> Tensor:
    """[B] mean of a value over the members with a return of a rollout's groups; NaN where there are none.

    Raises:
        ValueError: a rollout is in no group.
    """
    homeless = (~batch.groups.any(0)).nonzero().flatten()
    if len(homeless):
        raise ValueError(f"row {int(homeless[0])} is in no group: prepare the batch before cutting groups apart")
    counted = (batch.groups & batch.returns.isfinite()).to(values.dtype)
    mean = (counted @ values.nan_to_num(0.0)) / counted.sum(1)
    return (batch.groups * mean.nan_to_num(0.0)[:, None]).sum(0) / batch.groups.sum(0)


def _with_column(batch: Batch, name: str, values: Tensor) -> Batch:
    return replace(batch, columns=batch.columns | {name: values})
