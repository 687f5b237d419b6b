"""Calling a reward on rollouts: columns in, checked scores out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..families import name_of
from ..types import RewardFunction, Rollout, Score


class RewardError(ValueError):
    """A reward raised or returned something that is not a score; the line names reward and sample."""


class RewardUsageError(RewardError, UsageError):
    """A reward refused what a person gave it, such as a reference that it cannot read."""


def score(rollouts: Sequence[Rollout], reward: RewardFunction) -> dict[str, float]:
    """Fill ``rollout.scores``, ``total`` included, and return the means: "reward", and "reward/TERM" of its terms.

    Raises RewardError, with every rollout still whole, when the reward raises (RewardUsageError when it raises
    UsageError), returns NaN or another number of scores than samples. None for all of them is a round without a
    reward. No rollouts have no scores.
    """
    if not rollouts:
        return {}
    name = name_of(reward)
    try:
        result = reward(**columns(rollouts))
    except Exception as error:
        who, where = _culprit(rollouts, reward, error)
        if isinstance(error, UsageError):
            raise RewardUsageError(f"reward {who}: {error}{where}") from error
        raise RewardError(f"reward {who} raised {type(error).__name__}: {error}{where}") from error
    named = dict(result) if isinstance(result, Mapping) else {name: result}
    alone = "total" not in named and len(named) == 1
    if "total" not in named:
        named["total"] = next(iter(named.values()), [])
    for key, scores in named.items():
        _check(name if key == "total" else key, scores, rollouts)
    for key, scores in named.items():
        for rollout, value in zip(rollouts, scores, strict=True):
            rollout.scores[key] = value
    terms = {f"reward/{key}": _mean(scores) for key, scores in named.items() if key != "total"}
    return ({} if alone else terms) | {"reward": _mean(named["total"])}


def total_of(rollout: Rollout, name: str = "total") -> float | None:
    """A rollout's score as one number, that of its segments summed; None where it does not apply."""
    value = rollout.scores.get(name)
    return None if value is None else torch.as_tensor(value, dtype=torch.float64).detach().sum().item()


def columns(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """The keyword columns that a reward is called with, one entry per rollout."""
    tasks = [r.task for r in rollouts]
    outputs = [r.output for r in rollouts]
    extra = dict.fromkeys(key for task in tasks for key in task.extra)
    table: dict[str, Any] = {key: [task.extra.get(key) for task in tasks] for key in extra}
    table |= {"tasks": tasks, "prompts": [t.prompt for t in tasks], "references": [t.reference for t in tasks]}
    table |= {"outputs": outputs, "completions": outputs, "episodes": outputs}
    table["images"] = [t.images for t in tasks] if any(t.images for t in tasks) else outputs
    table["groups"] = [r.group_key for r in rollouts]
    table["players"] = [r.player for r in rollouts]
    table["log_probs"] = [r.log_probs for r in rollouts]
    table["rollouts"] = list(rollouts)
    return table


def _culprit(rollouts: Sequence[Rollout], reward: Any, error: Exception) -> tuple[str, str]:
    """The name of the term that raises, and at which single sample, as a phrase; empty if none does alone."""
    terms = [term for _, term in getattr(reward, "terms", [])]
    guilty = next((term for term in terms if _raises(term, rollouts, error)), reward)
    samples = (rollout.task.id for rollout in rollouts if _raises(guilty, [rollout], error))
    first = next(samples, None)
    return name_of(guilty), "" if first is None else f" (at sample {first})"


def _raises(reward: RewardFunction, rollouts: Sequence[Rollout], error: Exception) -> bool:
    try:
        reward(**columns(rollouts))
    except Exception as again:
        return type(again) is type(error)
    return False


def _check(name: str, scores: Any, rollouts: Sequence[Rollout]) -> None:
    if not isinstance(scores, Sequence | Tensor):
        raise RewardError(f"reward {name} returned {type(scores).__name__}, not a sequence of scores")
    if len(scores) != len(rollouts):
        raise RewardError(f"reward {name} returned {len(scores)} scores for {len(rollouts)} samples")
    for rollout, value in zip(rollouts, scores, strict=True):
        if value is not None and not _finite(value):
            raise RewardError(f"reward {name} returned {value} for sample {rollout.task.id}")


def _finite(value: Score) -> bool:
    if isinstance(value, Tensor):
        return bool(torch.isfinite(value.detach()).all())
    if isinstance(value, Sequence):
        return not isinstance(value, str) and all(math.isfinite(float(v)) for v in value)
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _mean(scores: Sequence[Score]) -> float:
    numbers = [torch.as_tensor(s, dtype=torch.float32).detach().sum().item() for s in scores if s is not None]
    return math.fsum(numbers) / len(numbers) if numbers else math.nan
