"""A regularisation strength in units of the reward itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..trainers.distributed import reduce_counts
from ..trainers.learner import PolicyLearner
from ..trainers.objectives import PairwiseRegression
from ..types import Rollout


class PairwiseLearner(PolicyLearner):
    """Pairwise regression whose beta is sigma_0 / kappa.

    sigma_0 is the mean standard deviation of the reward within the groups of the first update, so kappa says how many
    nats a picture may gain over another that is one standard deviation worse; rewards of any scale take the same kappa.

    Args:
        objective: its beta is replaced at the first update.
        kappa: 40 suits rewards that agree with the prompts; where they conflict, it has to be far smaller.
    """

    def __init__(self, policy: Any, objective: PairwiseRegression, *args: Any, kappa: float, **options: Any) -> None:
        super().__init__(policy, objective, *args, **options)
        self.regression, self.kappa, self.spread = objective, kappa, 0.0

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        if not self.spread:
            self.spread = group_spread(rollouts)
        if self.spread:
            self._set_beta()
        metrics = super().update(rollouts) if self.spread else {"learned": 0.0}
        return metrics | {"objective/sigma_0": self.spread}

    def _set_beta(self) -> None:
        # Dividing by 2 kappa keeps the loss near sigma_0's order, so that one clipping norm serves every kappa.
        self.objective = (1 / (2 * self.kappa)) * replace(self.regression, beta=self.spread / self.kappa)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"spread": self.spread}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.spread = float(state["spread"])


def group_spread(rollouts: Sequence[Rollout]) -> float:
    """Mean over groups of the standard deviation of their totals; over all processes."""
    groups: dict[str, list[float]] = {}
    for rollout in rollouts:
        value: Any = rollout.scores.get("total")
        if value is not None:
            groups.setdefault(rollout.group_key, []).append(float(value))
    spreads = [float(torch.tensor(values).std()) for values in groups.values() if len(values) > 1]
    counted = reduce_counts({"sum": sum(spreads), "groups": float(len(spreads))})
    return counted["sum"] / counted["groups"] if counted["groups"] else 0.0
