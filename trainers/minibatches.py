"""Minibatches drawn over the rollouts of all processes, so that their number changes no gradient step."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from ..types import Batch, Rollout
from .distributed import gather, rank
from .randomness import generator, seed_of

ROLLOUT = "rollout"
"""The column of a batch that names each row's rollout (see ``names``)."""


def names(rollouts: Sequence[Rollout]) -> list[int]:
    """A number per rollout, of its group and of its place there: the same whichever process holds the group."""
    seen: Counter[str] = Counter()
    found = []
    for rollout in rollouts:
        found.append(seed_of(rollout.group_key, seen[rollout.group_key]))
        seen[rollout.group_key] += 1
    return found


class Minibatches:
    """Cuts of a batch into gradient steps; what is drawn, and in which order, hangs on all processes' rollouts alone.

    Args:
        batch: this process's; None where it has no rollouts, and then all its parts are None.
        cut: into whole "groups", with the pairs and sets that connect them, or into "segments" (see ``Optimisation``).
        count: gradient steps per epoch.
    """

    def __init__(self, batch: Batch | None, cut: Literal["groups", "segments"], count: int) -> None:
        self.batch, self.cut, self.count = batch, cut, count
        if batch is None:
            self.units, owners = [], []
        elif cut == "groups":
            self.units = connected(batch)
            owners = [(min(self._named(batch)[rows].tolist()), 1) for rows in self.units]
        else:
            self.units = list(batch.decided.nonzero())
            owners = list(zip(self._named(batch).tolist(), batch.decided.sum(1).tolist(), strict=True))
        self.places = self._places(owners)

    def _named(self, batch: Batch) -> Tensor:
        named = batch.columns.get(ROLLOUT)  # a step of somebody's own may have made the batch anew
        return torch.arange(len(batch)) if named is None else named

    def _places(self, owners: Sequence[tuple[int, int]]) -> Tensor:
        """[N] for every unit of all processes, in the order of their names, which of this process's own it is, or -1.

        Args:
            owners: names of rows or of groups of rows, and how many units each has, in their order.
        """
        mine, everyone = rank(), gather([owners])
        starts = [0]
        for _, size in owners:
            starts.append(starts[-1] + size)
        order = sorted(chain(*([(name, who, i) for i, (name, _) in enumerate(o)] for who, o in enumerate(everyone))))
        places: list[int] = []
        for _, who, i in order:
            size = everyone[who][i][1]
            places += range(starts[i], starts[i] + size) if who == mine else [-1] * size
        return torch.tensor(places, dtype=torch.long)

    def epoch(self, *key: object) -> Iterator[Batch | None]:
        """The parts of one epoch in the order that the key draws; None where a part holds nothing of this process."""
        order = torch.randperm(len(self.places), generator=generator("minibatches", *key))
        for k in range(self.count):
            chosen = [self.units[i] for i in self.places[order[k :: self.count]].tolist() if i >= 0]
            yield None if self.batch is None or not chosen else self._part(self.batch, chosen)

    def _part(self, batch: Batch, chosen: Sequence[Tensor]) -> Batch:
        """Some groups (rows each) or segments (row and segment each) of a batch."""
        if self.cut == "groups":
            return batch.select(torch.cat(list(chosen)))
        places = torch.stack(list(chosen))
        inside = torch.zeros_like(batch.decided)
        inside[places[:, 0], places[:, 1]] = True
        rows = inside.any(1).nonzero()[:, 0]
        part = batch.select(rows)
        return replace(part, mask=part.mask & inside[rows].gather(1, part.segments.clamp(min=0)))


def connected(batch: Batch) -> list[Tensor]:
    """Rows that share a group or a pair, directly or through others, as index tensors in row order."""
    parent = list(range(len(batch)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    links = [group.nonzero()[:, 0].tolist() for group in batch.groups]
    links += [] if batch.pairs is None else batch.pairs.tolist()
    for rows in links:
        for row in rows[1:]:
            first, second = sorted((root(rows[0]), root(row)))
            parent[second] = first
    members: dict[int, list[int]] = defaultdict(list)
    for row in range(len(batch)):
        members[root(row)].append(row)
    return [torch.tensor(rows) for rows in members.values()]
