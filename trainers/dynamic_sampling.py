"""Dynamic sampling: groups that teach nothing are left out of a round, and other tasks are drawn in their place.

DAPO (arXiv:2503.14476, eq. 11) keeps groups in which some attempts are right and some are not; SimpleVLA-RL keeps those
whose success rate lies strictly between .1 and .9 (both checked against the released code's options, by reading).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..numbers import rows_by_key
from ..types import Rollout, Task
from .distributed import gather
from .scoring import total_of

Attempt = Callable[[int, Sequence[Task]], tuple[list[Task], list[Rollout], dict[str, float]]]
"""How many tasks to draw, and those that the round has drawn before -> all processes' new tasks, this process's scored
attempts at them, and metrics."""


@dataclass(frozen=True)
class DynamicSampling:
    """Which groups are learned from, and how often a round draws again.

    Attributes:
        low, high: a group is kept where its mean score lies strictly between them, and its scores are not all the same.
        batches: how often a round draws tasks at most; it then learns from what was kept, fewer groups than usual.
    """

    low: float = -math.inf
    high: float = math.inf
    batches: int = 10

    def kept(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts of groups that are learned from, in their order."""
        groups = rows_by_key(rollout.group_key for rollout in rollouts).values()
        good = {row for rows in groups if self.teaches([rollouts[row] for row in rows]) for row in rows}
        return [rollout for row, rollout in enumerate(rollouts) if row in good]

    def teaches(self, group: Sequence[Rollout]) -> bool:
        """Whether a group's scores, of any segment, differ, and their mean is within the range."""
        scored = [rollout for rollout in group if rollout.scores.get("total") is not None]
        if len(scored) < 2:
            return False
        first, *others = (_score(rollout) for rollout in scored)
        mean = math.fsum(total_of(rollout) or 0.0 for rollout in scored) / len(scored)
        return self.low < mean < self.high and not all(torch.equal(first, other) for other in others)

    def fill(self, attempt: Attempt, wanted: int) -> tuple[list[Task], list[Rollout], list[Rollout], dict[str, float]]:
        """Attempts at ``wanted`` tasks whose groups are kept, as far as ``batches`` draws bring them.

        Every draw asks for as many tasks as are missing. What is drawn hangs on the curriculum's state and the round
        alone, so that a resumed run, and one of several processes, draw the same.

        Returns:
            All tasks that were drawn; this process's rollouts that are kept, and all of them; the metrics of the first
            draw, whose scores are those of the curriculum's tasks as they come, with "dynamic/kept" (share of the drawn
            groups), "dynamic/drawn" (groups), "dynamic/batches" and "dynamic/missing" (groups that the round lacks).
        """
        tasks, rollouts, metrics = attempt(wanted, [])
        kept, drawn, batches = self.kept(rollouts), _groups(rollouts), 1
        full = drawn
        while (missing := full - _groups(kept)) > 0 and batches < self.batches:
            new_tasks, new, _ = attempt(math.ceil(missing * wanted / full), tasks)
            tasks, rollouts, kept = [*tasks, *new_tasks], [*rollouts, *new], [*kept, *self.kept(new)]
            drawn, batches = drawn + _groups(new), batches + 1
        learned_from = {id(rollout) for rollout in kept}
        for rollout in rollouts:  # what a curriculum goes by, where no learner will say it
            if id(rollout) not in learned_from:
                rollout.info["abs_advantage"] = 0.0
        told = {"kept": (full - missing) / max(1, drawn), "batches": float(batches), "missing": float(max(0, missing))}
        told["drawn"] = float(drawn)
        return tasks, kept, rollouts, metrics | {f"dynamic/{name}": value for name, value in told.items()}


def _groups(rollouts: Sequence[Rollout]) -> int:
    """How many groups there are, in all processes."""
    return len(set(gather(list({rollout.group_key for rollout in rollouts}))))


def _score(rollout: Rollout) -> Any:
    return torch.as_tensor(rollout.scores["total"], dtype=torch.float64).detach().cpu()
