"""A progress model pretrained on other tasks, which a few demonstrations turn to a new one.

What it learns is not what a task is but how to read demonstrations: which relations between hand, objects and
goal changed and came to agree, how exactly they had to, and how much of that an observation shows. Each
relation is described by a few scale-free numbers, one small network reads all of them alike, and what it
says is weighed and added up. Pretraining reads successes of the other tasks (state that with results); the
new task gives its demonstrations and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...fitting import cosine, fit
from ...numbers import Floats
from .ensemble import Ensemble
from .features import RELATIONS, RelationFeatures, check_shown

DESCRIPTORS = 12


@dataclass(frozen=True)
class Pretraining:
    """Attributes:
    members: networks of the ensemble; their mean is the estimate.
    steps, batch, lr, hidden: of each member's training by AdamW; a batch is from one task.
    most: demonstrations that a task is described by in training, 1 to this many at random.
    """

    members: int = 2
    steps: int = 1500
    batch: int = 256
    lr: float = 2e-3
    hidden: int = 48
    most: int = 3
    seed: int = 0


@dataclass(frozen=True, eq=False)
class _Reading:
    """What demonstrations say of one relation: tracks, and from [K, d] starts, successes and ends."""

    starts: Tensor
    successes: Tensor
    ends: Tensor
    tracks: list[Tensor]

    @property
    def target(self) -> Tensor:
        return self.ends.mean(0)


class PretrainedCritic(Ensemble):
    """Success of an observation in a task known by its demonstrations alone, 0..1.

    :meth:`pretrain` on other tasks, then :meth:`adapt` to demonstrations of the tasks at hand.

    Args:
        layout: as of :class:`~.features.RelationFeatures`.
    """

    kind: Literal["absolute"] = "absolute"
    sees: Literal["states"] = "states"
    families = frozenset({"demonstrations:pretrained network of relations"})

    def __init__(self, layout: Mapping[str, slice], training: Pretraining | None = None) -> None:
        self.features = RelationFeatures(layout)
        self.training = training or Pretraining()
        self.members: list[nn.Module] = []
        self.readings: dict[str, list[_Reading]] = {}

    def pretrain(self, practice: Sequence[Any]) -> float:
        """Learn from other tasks; returns the last loss.

        Args:
            practice: per task ``demonstrations`` and ``episodes`` that end as soon as they succeed
                (``observations`` [S+1, D], ``success``). Tasks without a success or without a failure are left out.

        Raises:
            ValueError: no task is left.
        """
        kept = [p for p in practice if 0 < sum(bool(e.success) for e in p.episodes) < len(p.episodes)]
        if not kept:
            raise ValueError("pretraining needs tasks with successes and failures")
        loss = 0.0
        tables = [_Table.of(p) for p in kept]
        for member in range(self.training.members):
            loss = self._pretrain_member(kept, tables, self.training.seed * 1000 + member)
        return loss

    def _pretrain_member(self, practice: Sequence[Any], tables: Sequence[_Table], seed: int) -> float:
        how, random = self.training, torch.Generator().manual_seed(seed)

        def loss(_: int) -> Tensor:
            chosen = int(torch.randint(len(practice), (), generator=random))
            few = self._few(practice[chosen].demonstrations, random)
            now, initial, success = tables[chosen].draw(how.batch, random)
            out = network(self._describe(self._read(few), now, initial).to(self.device))
            return nn.functional.binary_cross_entropy_with_logits(out, success.to(self.device))

        with torch.random.fork_rng():  # initial weights and dropout
            torch.manual_seed(seed)
            network = _Network(how.hidden).to(self.device)
            last = fit(network, loss, cosine(how.lr, how.steps), weight_decay=1e-3)
        self.members.append(network.eval())
        return last

    def _few(self, demonstrations: Sequence[Any], random: torch.Generator) -> list[Any]:
        count = 1 + int(torch.randint(min(self.training.most, len(demonstrations)), (), generator=random))
        return [demonstrations[i] for i in torch.randperm(len(demonstrations), generator=random)[:count].tolist()]

    def adapt(self, demonstrations: Sequence[Any]) -> PretrainedCritic:
        """The same critic for the tasks of these demonstrations (``observations``, ``instruction``, ``settle``)."""
        if not self.members:
            raise ValueError("pretrain the critic, or load one, before it adapts")
        check_shown(demonstrations)
        adapted = PretrainedCritic(self.features.layout, self.training)
        adapted.members, adapted.device = self.members, self.device
        for text in dict.fromkeys(d.instruction for d in demonstrations):
            adapted.readings[text] = self._read([d for d in demonstrations if d.instruction == text])
        return adapted

    @torch.no_grad()
    def __call__(
        self, observations: Floats, initial: Floats, instructions: Sequence[str], references: Floats | None = None
    ) -> Floats:
        """Estimates [N] in 0..1 for observations [N, D] of episodes that began at initial [N, D]."""
        result = np.zeros(len(observations), np.float32)
        for text in dict.fromkeys(instructions):
            if text not in self.readings:
                raise ValueError(f"the critic was not adapted to {text!r}")
            rows = np.array([i for i, other in enumerate(instructions) if other == text])
            now, first = torch.as_tensor(observations[rows]), torch.as_tensor(initial[rows])
            seen = self._describe(self.readings[text], now, first).to(self.device)
            result[rows] = torch.stack([member(seen).sigmoid() for member in self.members]).mean(0).cpu().numpy()
        return result

    def _read(self, demonstrations: Sequence[Any]) -> list[_Reading]:
        readings = []
        for name in RELATIONS:
            tracks, successes = [], []
            for demonstration in demonstrations:
                seen = torch.as_tensor(demonstration.observations, dtype=torch.float32)
                tracks.append(self.features.relation(name, seen, seen[:1].expand_as(seen)))
                successes.append(tracks[-1][len(seen) - 1 - demonstration.settle])
            starts, ends = torch.stack([t[0] for t in tracks]), torch.stack([t[-1] for t in tracks])
            readings.append(_Reading(starts, torch.stack(successes), ends, [t[::5] for t in tracks]))
        return readings

    def _describe(self, readings: Sequence[_Reading], now: Tensor, initial: Tensor) -> Tensor:
        """[N, relations, DESCRIPTORS] of observations [N, D]."""
        parts = []
        for name, reading in zip(RELATIONS, readings, strict=True):
            value, first = self.features.relation(name, now, initial), self.features.relation(name, initial, initial)
            parts.append(_descriptors(reading, value, first, 0.01))
        return torch.stack(parts, 1)

    def state_dict(self) -> dict[str, Any]:
        return {"members": self.states()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.members = [self.restored(_Network(self.training.hidden), weights) for weights in state["members"]]


def _descriptors(reading: _Reading, now: Tensor, first: Tensor, near: float) -> Tensor:
    """[N, DESCRIPTORS] of one relation: gaps relative to the demonstrations' way, exactness and agreement."""
    target = reading.target
    gap, own = (now - target).norm(dim=-1), (first - target).norm(dim=-1)
    way = (reading.starts - target).norm(dim=-1).mean()
    spread = (reading.ends - target).norm(dim=-1).max()
    slack = (reading.successes - target).norm(dim=-1).max()  # how far from its end value it was when success began
    exact = torch.maximum(slack, spread).clamp(min=near)
    heading = target - reading.starts.mean(0)
    along = ((now - first) * heading).sum(-1) / (way**2).clamp(min=near**2)
    nearest = torch.cat([torch.cdist(now, track) for track in reading.tracks], 1).amin(1)
    late = torch.cat([torch.linspace(0, 1, len(track)) for track in reading.tracks])
    time = late[torch.cat([torch.cdist(now, track) for track in reading.tracks], 1).argmin(1)]
    ones = torch.ones_like(gap)
    columns = (
        torch.log((gap + near) / exact),
        torch.log((gap + near) / (way + near)),
        torch.log((gap + near) / (own + near)),
        along.clamp(-2, 2),
        torch.log((nearest + near) / near) / 3,
        time,
        (gap <= exact).float(),
        torch.exp(-(gap - exact).clamp(min=0) / (0.1 * way + near)),
        ones * torch.log((way + near) / near),
        ones * torch.log((spread + near) / (way + near)),
        ones * torch.log((slack + near) / (way + near)),
        ones * (1.0 if len(reading.starts) > 1 else 0.0),
    )
    return torch.stack(columns, -1)


class _Network(nn.Module):
    """Reads every relation alike but for its name, weighs what they say, and adds it up."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.names = nn.Parameter(torch.zeros(len(RELATIONS), 8))
        self.read = nn.Sequential(
            nn.Linear(DESCRIPTORS + 8, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Dropout(0.1)
        )
        self.weigh = nn.Linear(hidden, 4)
        self.head = nn.Sequential(nn.Linear(4 * hidden + hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def forward(self, described: Tensor) -> Tensor:
        names = self.names.expand(len(described), -1, -1)
        read = self.read(torch.cat([described, names], -1))
        weights = self.weigh(read).softmax(1)
        pooled = torch.einsum("nrk,nrh->nkh", weights, read).flatten(1)
        out: Tensor = self.head(torch.cat([pooled, read.amin(1)], -1))[:, 0]
        return out


@dataclass(eq=False)
class _Table:
    """A task's observations with their episodes' first ones, and whether they are successes."""

    now: Tensor
    initial: Tensor
    success: Tensor

    @classmethod
    def of(cls, practice: Any) -> _Table:
        now, initial, success = [], [], []
        for episode in practice.episodes:
            seen = torch.as_tensor(episode.observations, dtype=torch.float32)
            now.append(seen)
            initial.append(seen[:1].expand_as(seen))
            success.append(torch.zeros(len(seen)))
            success[-1][-1] = float(bool(episode.success))
        for shown in practice.demonstrations:  # what comes after success is success too
            seen = torch.as_tensor(shown.observations, dtype=torch.float32)[-1 - shown.settle :: 5]
            now.append(seen)
            initial.append(torch.as_tensor(shown.observations[:1], dtype=torch.float32).expand_as(seen))
            success.append(torch.ones(len(seen)))
        return cls(torch.cat(now), torch.cat(initial), torch.cat(success))

    def draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Half of them successes."""
        sides = [torch.nonzero(self.success == side)[:, 0] for side in (0.0, 1.0)]
        half = count // 2
        rows = torch.cat([side[torch.randint(len(side), (half,), generator=random)] for side in sides])
        return self.now[rows], self.initial[rows], self.success[rows]
