"""Log-ratio of two policies as a reward: which way did the one move away from the other?

    reward = Reward(LogRatio(scorer(finetuned), scorer(base)))

Self-Rewarding PPO (arXiv 2510.21090; checked against a summary, not against the paper): with the finetuned policy a and
the base b, r(x, y) = Σ_j [log a(y_j | ·) - log b(y_j | ·)] at the end of a completion extends demonstrations to prompts
without any. Under a penalty β · KL(π ‖ a) the best policy is a · (a/b)^(1/β), renormalised (derived, tested).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import unknown
from ..families import families_of
from ..types import Policy, Rollout

Scorer = Callable[[Sequence[Rollout]], Sequence[float] | Tensor]
"""Rollouts -> the log-probability of each as a whole, [B], in nats."""


@dataclass(frozen=True)
class _PolicyScorer:
    policy: Policy
    name: str

    @property
    def families(self) -> frozenset[str]:
        return frozenset({f"policy:{self.name}"})

    def __call__(self, rollouts: Sequence[Rollout]) -> Tensor:
        batch = self.policy.collate(rollouts)
        with torch.no_grad():
            return (self.policy.evaluate_actions(batch).log_probs * batch.mask).sum(-1).cpu()


def scorer(policy: Policy, name: str = "self") -> Scorer:
    """The log-probability that a policy gives to each rollout: Σ over its decisions; of the family "policy:NAME"."""
    return _PolicyScorer(policy, name)


class LogRatio:
    """log a - log b of each rollout, in nats.

    A sum over decisions grows with the length of a completion; "decision" divides by the number of decisions, which
    takes away the reward of being long, and with it the fixed point.

    Args:
        of, over: the scorers a and b.
        per: "completion" (the sum) or "decision" (the mean).
    """

    def __init__(self, of: Scorer, over: Scorer, per: Literal["completion", "decision"] = "completion") -> None:
        if per not in ("completion", "decision"):
            raise unknown("unit of a log-ratio", per, ("completion", "decision"))
        self.of, self.over, self.per = of, over, per

    @property
    def families(self) -> frozenset[str]:
        return families_of(self.of, self.over)

    def __call__(self, rollouts: Sequence[Rollout], **columns: Any) -> list[float]:
        """One score per rollout.

        Raises:
            ValueError: a scorer gives another number of log-probabilities, or one that is not finite.
        """
        first, second = (self._asked(name, score, rollouts) for name, score in (("of", self.of), ("over", self.over)))
        ratios = [a - b for a, b in zip(first, second, strict=True)]
        if self.per == "completion":
            return ratios
        return [ratio / max(1, int(rollout.mask.sum())) for ratio, rollout in zip(ratios, rollouts, strict=True)]

    def _asked(self, name: str, score: Scorer, rollouts: Sequence[Rollout]) -> list[float]:
        values = [float(value) for value in score(rollouts)]
        if len(values) != len(rollouts):
            raise ValueError(f'the scorer "{name}" gave {len(values)} log-probabilities for {len(rollouts)} rollouts')
        for value, rollout in zip(values, rollouts, strict=True):
            if not math.isfinite(value):
                raise ValueError(f'the scorer "{name}" gave {value} for the rollout of {rollout.task.id}')
        return values
