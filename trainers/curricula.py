"""Which tasks come next.

A curriculum draws from categories. Each category is a list of tasks, which is shuffled anew for every time
through it, or a function from an index to a task (an endless supply, such as initial states of a
simulator). What it learns from rollouts and what it has handed out is in its state, and orders hang on
the seed, so a resumed run goes on where it stopped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .. import types
from ..types import Rollout, Task, Verdict
from .contracts import Curriculum
from .randomness import generator

Source = Callable[[int], Task] | Sequence[Task]


def shuffled(tasks: Sequence[Task], *key: object) -> Callable[[int], Task]:
    """An endless supply: every task once in a random order, then again in another; orders hang on the key."""
    kept: list[tuple[int, list[int]]] = []

    def draw(index: int) -> Task:
        epoch, place = divmod(index, len(tasks))
        if not kept or kept[0][0] != epoch:
            kept[:] = [(epoch, torch.randperm(len(tasks), generator=generator("order", *key, epoch)).tolist())]
        return tasks[kept[0][1][place]]

    return draw


def apart(tasks: Sequence[Task]) -> list[Task]:
    """Tasks whose ids differ: one that comes again gets another id, so that it draws other random numbers and its
    attempts form a group of their own."""
    ids = Counter(task.id for task in tasks)
    seen: Counter[str] = Counter()
    found = []
    for task in tasks:
        number = seen[task.id]
        seen[task.id] += 1
        while number and ids[f"{task.id}/again/{number}"]:
            number += 1
        if number:
            task = replace(task, id=f"{task.id}/again/{number}")
            ids[task.id] += 1
        found.append(task)
    return found


class Uniform(Curriculum):
    """Every category in turn.

    Args:
        sources: category -> its tasks, or a function from an index to a task.
        seed: keys the order.
        quarantine: how many updates a category is left out after a gate found it harmed.
    """

    def __init__(self, sources: Mapping[str, Source], *, seed: int = 0, quarantine: int = 10**9) -> None:
        if not sources:
            raise ValueError("a curriculum needs at least one category of tasks")
        if empty := [name for name, source in sources.items() if not callable(source) and not len(source)]:
            raise ValueError(f'the category "{empty[0]}" has no task')
        self.sources = {
            name: source if callable(source) else shuffled(source, seed, name) for name, source in sources.items()
        }
        self.seed, self.quarantine = seed, quarantine
        self.drawn = dict.fromkeys(self.sources, 0)
        self.excluded = dict.fromkeys(self.sources, 0)
        self.updates = 0

    def sample(self, n: int) -> list[Task]:
        """n tasks, as evenly over the open categories as n allows."""
        return [self._next(category) for category in self._choose(n)]

    def _open(self) -> list[str]:
        """Categories that are not quarantined; all of them if none is left."""
        return [c for c in self.sources if self.updates >= self.excluded[c]] or list(self.sources)

    def _choose(self, n: int) -> list[str]:
        names = self._open()
        order = torch.randperm(len(names), generator=generator("uniform", self.seed, self.updates)).tolist()
        return [names[order[i % len(names)]] for i in range(n)]

    def _next(self, category: str) -> Task:
        task = self.sources[category](self.drawn[category])
        self.drawn[category] += 1
        return task if task.category else replace(task, category=category)

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        self.updates += 1
        return {"curriculum/open": float(len(self._open()))}

    def repair(self, verdict: Verdict) -> dict[str, float]:
        """Leave harmed categories out for ``quarantine`` updates."""
        for category in verdict.harmed:
            if category in self.excluded:
                self.excluded[category] = self.updates + self.quarantine
        return {"curriculum/open": float(len(self._open()))}

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": dict(self.drawn), "excluded": dict(self.excluded), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = {c: int(state["drawn"][c]) for c in self.sources}
        self.excluded = {c: int(state["excluded"][c]) for c in self.sources}
        self.updates = int(state["updates"])


class SEC(Uniform):
    """Self-evolving curriculum: a bandit over categories, paid by the mean |advantage| just seen.

    Q(c) <- a * r(c) + (1 - a) * Q(c) for categories present, p(c) = softmax(Q / tau). Rate 0.5 as in
    the authors' README; tau there is 1.0, 0.4 or 0.2 by task (checked against the code's documentation).
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        temperature: float = 0.4,
        rate: float = 0.5,
        seed: int = 0,
        quarantine: int = 10**9,
    ) -> None:
        super().__init__(sources, seed=seed, quarantine=quarantine)
        if temperature <= 0:
            raise ValueError(f"SEC needs a temperature above 0, not {temperature}")
        self.temperature, self.rate = temperature, rate
        self.values = dict.fromkeys(self.sources, 0.0)

    def _choose(self, n: int) -> list[str]:
        names = self._open()
        logits = torch.tensor([self.values[c] for c in names], dtype=torch.float64) / self.temperature
        random = generator("sec", self.seed, self.updates)
        picks = torch.multinomial(logits.softmax(0), n, replacement=True, generator=random)
        return [names[i] for i in picks.tolist()]

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Uses ``info["abs_advantage"]``, which the policy's learner leaves on each rollout."""
        seen: dict[str, list[float]] = defaultdict(list)
        for rollout in rollouts:
            if "abs_advantage" in rollout.info:
                seen[rollout.task.category].append(float(rollout.info["abs_advantage"]))
        for category, sizes in seen.items():
            mean = sum(sizes) / len(sizes)
            self.values[category] = self.rate * mean + (1 - self.rate) * self.values[category]
        metrics = super().update(rollouts)
        return metrics | {f"curriculum/value/{c}": value for c, value in self.values.items()}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.values = {c: float(state["values"][c]) for c in self.sources}


class ProgressiveHorizon(Curriculum):
    """Beginnings first: wraps a curriculum and cuts each task's horizon, less and less.

    EVOLVE-VLA trains in stages with an increasing horizon (arXiv 2512.14666; the idea is checked
    against the paper, which gives no schedule).

    Args:
        stages: (first update, share of the task's own horizon) in increasing order, the first at update 0.
    """

    def __init__(self, inner: types.Curriculum, stages: Sequence[tuple[int, float]]) -> None:
        starts = [start for start, _ in stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"horizon stages start at update 0 and increase, not {list(stages)}")
        if not all(0 < share <= 1 for _, share in stages):
            raise ValueError(f"horizon stages are shares in (0, 1], not {list(stages)}")
        self.inner, self.stages = inner, tuple(stages)
        self.updates = 0

    @property
    def share(self) -> float:
        return next(share for start, share in reversed(self.stages) if self.updates >= start)

    def sample(self, n: int) -> list[Task]:
        tasks = self.inner.sample(n)
        if any(task.horizon is None for task in tasks):
            raise ValueError("a progressive horizon cuts tasks that have one: set Task.horizon")
        return [replace(task, horizon=max(1, round((task.horizon or 1) * self.share))) for task in tasks]

    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        metrics = self.inner.update(rollouts) | {"curriculum/horizon_share": self.share}
        self.updates += 1
        return metrics

    def repair(self, verdict: Verdict) -> dict[str, float]:
        return self.inner.repair(verdict)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.updates = int(state["updates"])
