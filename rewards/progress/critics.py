"""Progress critics learned from a few demonstrations.

A demonstration tells what progress looks like along one path, and nothing about leaving it. So
critics also learn from *synthetic negatives* made of the same demonstrations: a hand pushed off its
way, an object that lags behind or never moves, a goal that lies elsewhere, time run backwards, and
another task's instruction. Where it is not known which numbers are the hand's, the whole state is
pushed, and any of its numbers lag behind. An image or state critic trained on successes alone reads
high whatever happens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ...fitting import cosine, fit
from ...numbers import Floats
from .ensemble import Ensemble
from .features import Features, check_shown

Kind = Literal["absolute", "pairwise"]


@dataclass(frozen=True)
class CriticTraining:
    """Attributes:
    members: networks of the ensemble; their mean is the estimate.
    steps, batch, lr, hidden: of each member's training by AdamW.
    perturbed, lagging, elsewhere, mismatched: share of the batch that is each kind of negative.
    push: largest displacement in metres of a perturbed hand or goal (log-uniform from 5 mm).
    jolt: where no layout is known, the largest displacement of a whole state, in spreads of the demonstrations
        (log-uniform from a fortieth of it).
    settled: share of the demonstration's settling steps after which progress is complete.
    """

    members: int = 2
    steps: int = 600
    batch: int = 512
    lr: float = 2e-3
    hidden: int = 128
    perturbed: float = 0.25
    lagging: float = 0.15
    elsewhere: float = 0.1
    mismatched: float = 0.1
    push: float = 0.2
    jolt: float = 2.0
    settled: float = 0.5
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Path:
    """One demonstration as a critic sees it: [N+1, D] observations, progress [N+1] in 0..1, the way travelled.

    The way is the hand's in metres; where no hand is known, the state's in spreads of the demonstrations.
    """

    observations: Tensor
    progress: Tensor
    travel: float
    instruction: int


class ProgressCritic(Ensemble):
    """An ensemble of small networks that estimate progress.

    Args:
        kind: "absolute" reads one observation, 0..1; "pairwise" reads how far the second of two
            observations is ahead of the first, as a share of what was left to do: -1..1, the unit of
            VLAC's critic divided by 100.
        features: what it looks at; ``StateFeatures()`` works for any environment.
    """

    def __init__(self, kind: Kind, features: Features, training: CriticTraining | None = None) -> None:
        self.kind = kind
        self.features = features
        self.training = training or CriticTraining()
        self.instructions: dict[str, int] = {}
        self.members: list[nn.Module] = []

    @property
    def families(self) -> frozenset[str]:
        return frozenset({f"demonstrations:{self.kind} network of states"})

    # training

    def fit(self, demonstrations: Sequence[Any]) -> float:
        """Learn from demonstrations (``observations`` [N+1, D], ``instruction``, ``settle``); returns the last loss.

        Raises:
            UsageError: there are none, or their observations are not finite.
        """
        check_shown(demonstrations)
        self.features = self.features.fitted(demonstrations)
        self.instructions = {text: i for i, text in enumerate(dict.fromkeys(d.instruction for d in demonstrations))}
        paths = [self._path(d) for d in demonstrations]
        loss = 0.0
        for member in range(self.training.members):
            loss = self._fit_member(paths, self.training.seed * 1000 + member)
        return loss

    def _path(self, demonstration: Any) -> Path:
        observations = torch.as_tensor(demonstration.observations, dtype=torch.float32)
        done = len(observations) - 1 - (1 - self.training.settled) * demonstration.settle
        progress = (torch.arange(len(observations)) / max(done, 1.0)).clamp(max=1.0)
        layout = self.features.layout
        hand = observations[:, layout["hand"]] if "hand" in layout else self._scaled(observations)
        travel = float(hand.diff(dim=0).norm(dim=-1).sum())
        return Path(observations, progress, max(travel, 0.05), self.instructions[demonstration.instruction])

    def _scaled(self, observations: Tensor) -> Tensor:
        """Observations in the demonstrations' spreads, where features know them."""
        return observations / torch.tensor(self.features.spread) if self.features.spread else observations

    def _fit_member(self, paths: Sequence[Path], seed: int) -> float:
        random = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            size = self._inputs(paths[0].observations[:1], paths[0].observations[:1]).shape[-1]
            width = (1 if self.kind == "absolute" else 2) * size + len(self.instructions)
            network = _network(width, self.training.hidden).to(self.device)
        table = _Table(paths, self.features.layout, self.features.spread)
        rates = cosine(self.training.lr, self.training.steps)
        loss = fit(network, lambda _: self._loss(network, table, random), rates, weight_decay=1e-4)
        self.members.append(network.eval())
        return loss

    def _loss(self, network: nn.Module, table: _Table, random: torch.Generator) -> Tensor:
        sample = table.draw(self.training, random)
        if self.kind == "absolute":
            inputs, target = self._inputs(sample.now, sample.initial), sample.progress
        else:
            earlier = table.draw_earlier(sample, random)
            pair = [self._inputs(earlier.now, sample.initial), self._inputs(sample.now, sample.initial)]
            inputs, target = torch.cat(pair, -1), _advance(earlier.progress, sample.progress)
        text = nn.functional.one_hot(sample.instruction, len(self.instructions)).float()
        out = network(torch.cat([inputs, text], -1).to(self.device))[:, 0]
        guess = out.sigmoid() if self.kind == "absolute" else out.tanh()
        loss: Tensor = ((guess - target.to(self.device)) ** 2).mean()
        return loss

    def _inputs(self, now: Tensor, initial: Tensor) -> Tensor:
        return self.features(now, initial)

    # use

    @torch.no_grad()
    def __call__(
        self, observations: Floats, initial: Floats, instructions: Sequence[str], references: Floats | None = None
    ) -> Floats:
        """Estimates [N] for observations [N, D] of episodes that began at initial [N, D].

        Args:
            references: [N, D] the earlier observations that a pairwise critic compares with.
        """
        unknown = [text for text in instructions if text not in self.instructions]
        if unknown:
            raise UsageError(
                f"the critic has no demonstration of {unknown[0]!r}: show it one, or take one that needs none"
            )
        now, first = torch.as_tensor(observations), torch.as_tensor(initial)
        rows = torch.tensor([self.instructions[text] for text in instructions])
        text = nn.functional.one_hot(rows, len(self.instructions)).float()
        parts = [self._inputs(now, first), text]
        if self.kind == "pairwise":
            if references is None:
                raise ValueError("a pairwise critic needs references")
            parts.insert(0, self._inputs(torch.as_tensor(references), first))
        inputs = torch.cat(parts, -1).to(self.device)
        outs = torch.stack([member(inputs)[:, 0] for member in self.members])
        guesses = outs.sigmoid() if self.kind == "absolute" else outs.tanh()
        result: Floats = guesses.mean(0).cpu().numpy()
        return result

    def state_dict(self) -> dict[str, Any]:
        return {
            "instructions": dict(self.instructions),
            "members": self.states(),
            "scales": self.features.scales(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.features = self.features.scaled([float(number) for number in state["scales"]])
        self.instructions = {str(k): int(v) for k, v in state["instructions"].items()}
        hidden = self.training.hidden
        self.members = [self.restored(_network(w["0.weight"].shape[1], hidden), w) for w in state["members"]]


def _network(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
    )


def _advance(before: Tensor, after: Tensor) -> Tensor:
    """How far ``after`` is ahead, as a share of what was left at ``before``; -1..1."""
    return ((after - before) / (1 - before).clamp(min=0.05)).clamp(-1, 1)


@dataclass(eq=False)
class _Sample:
    now: Tensor
    initial: Tensor
    progress: Tensor
    instruction: Tensor
    path: Tensor


class _Table:
    """All frames of all demonstrations, drawn with negatives; every demonstration counts the same."""

    def __init__(self, paths: Sequence[Path], layout: Mapping[str, slice], spread: Sequence[float]) -> None:
        self.paths, self.layout = paths, layout
        self.spread = torch.tensor(spread)
        self.lengths = torch.tensor([len(p.observations) for p in paths])
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.observations = torch.cat([p.observations for p in paths])
        self.progress = torch.cat([p.progress for p in paths])
        self.travel = torch.tensor([p.travel for p in paths])
        self.instruction = torch.tensor([p.instruction for p in paths])
        self.movable = [key for key in ("object", "object_rotation", "second", "second_rotation") if key in layout]

    def draw(self, how: CriticTraining, random: torch.Generator) -> _Sample:
        path = torch.randint(len(self.paths), (how.batch,), generator=random)
        time = self._time(path, random)
        now = self.observations[self.starts[path] + time].clone()
        progress = self.progress[self.starts[path] + time].clone()
        instruction = self.instruction[path].clone()
        bounds = torch.tensor([how.perturbed, how.lagging, how.elsewhere, how.mismatched]).cumsum(0)
        chance = torch.rand(how.batch, generator=random)
        lagging = (chance >= bounds[0]) & (chance < bounds[1])
        if self.layout:
            self._push(now, progress, path, chance < bounds[0], "hand", how.push, random)
            self._lag(now, progress, path, time, lagging, random)
        else:
            self._jolt(now, progress, path, chance < bounds[0], how.jolt, random)
            self._lag_anywhere(now, progress, path, time, lagging, random)
        moved = (chance >= bounds[1]) & (chance < bounds[2])
        self._push(now, progress, path, moved, "goal", how.push, random)
        if int(self.instruction.max()) > 0:
            wrong = (chance >= bounds[2]) & (chance < bounds[3])
            kinds = int(self.instruction.max()) + 1
            shift = torch.randint(1, kinds, (how.batch,), generator=random)
            instruction = torch.where(wrong, (instruction + shift) % kinds, instruction)
            progress[wrong] = 0.0
        return _Sample(now, self.observations[self.starts[path]], progress, instruction, path)

    def draw_earlier(self, sample: _Sample, random: torch.Generator) -> _Sample:
        """Unperturbed frames of the same demonstrations at any time: forwards and backwards pairs alike."""
        time = self._time(sample.path, random)
        rows = self.starts[sample.path] + time
        return _Sample(self.observations[rows], sample.initial, self.progress[rows], sample.instruction, sample.path)

    def _time(self, path: Tensor, random: torch.Generator) -> Tensor:
        return (torch.rand(len(path), generator=random) * self.lengths[path]).long()

    def _push(
        self, now: Tensor, progress: Tensor, path: Tensor, rows: Tensor, what: str, push: float, random: torch.Generator
    ) -> None:
        """Displace the hand or the goal; progress falls by the way back, as a share of the hand's whole travel."""
        if what not in self.layout:
            return
        direction = torch.randn(now[:, self.layout[what]].shape, generator=random)
        size = 0.005 * (push / 0.005) ** torch.rand(len(path), 1, generator=random)
        offset = direction / direction.norm(dim=-1, keepdim=True) * size * rows[:, None]
        now[:, self.layout[what]] += offset
        progress -= offset.norm(dim=-1) / self.travel[path]
        progress.clamp_(min=0.0)

    def _jolt(
        self, now: Tensor, progress: Tensor, path: Tensor, rows: Tensor, size: float, random: torch.Generator
    ) -> None:
        """Displace a whole state; progress falls by the way back, as a share of the state's whole way."""
        direction = torch.randn(now.shape, generator=random)
        length = size * 40 ** -torch.rand(len(path), 1, generator=random)
        offset = direction / direction.norm(dim=-1, keepdim=True) * length * rows[:, None]
        now += offset * self.spread
        progress -= offset.norm(dim=-1) / self.travel[path]
        progress.clamp_(min=0.0)

    def _lag_anywhere(
        self, now: Tensor, progress: Tensor, path: Tensor, time: Tensor, rows: Tensor, random: torch.Generator
    ) -> None:
        """Half of the numbers as in an earlier frame; where they changed since, no more progress than then."""
        earlier = (torch.rand(len(path), generator=random) * (time + 1)).long()
        then = self.observations[self.starts[path] + earlier]
        late = (torch.rand(now.shape, generator=random) < 0.5) & rows[:, None]
        gap = ((now - then).abs() / self.spread * late).amax(-1)
        now[:] = torch.where(late, then, now)
        behind = rows & (gap > 0.1)
        progress[behind] = torch.minimum(progress, self.progress[self.starts[path] + earlier])[behind]

    def _lag(
        self, now: Tensor, progress: Tensor, path: Tensor, time: Tensor, rows: Tensor, random: torch.Generator
    ) -> None:
        """The objects of an earlier frame with the hand of this one: no more progress than the objects made."""
        if not self.movable:
            return
        earlier = (torch.rand(len(path), generator=random) * (time + 1)).long()
        then = self.observations[self.starts[path] + earlier]
        gap = torch.zeros(len(path))
        for key in self.movable:
            where = self.layout[key]
            gap = torch.maximum(gap, (now[:, where] - then[:, where]).abs().amax(-1))
            now[:, where] = torch.where(rows[:, None], then[:, where], now[:, where])
        behind = rows & (gap > 0.01)
        progress[:] = torch.where(behind, progress.minimum(self._last_before_motion(path, earlier)), progress)

    def _last_before_motion(self, path: Tensor, earlier: Tensor) -> Tensor:
        """Progress at the last frame whose objects stand where they stood at ``earlier``."""
        return self._still[self.starts[path] + earlier]

    @cached_property
    def _still(self) -> Tensor:
        return torch.cat([self._still_until(p) for p in self.paths])

    def _still_until(self, path: Path) -> Tensor:
        parts = [path.observations[:, self.layout[key]] for key in self.movable]
        objects = torch.cat(parts, -1)
        same = (objects[:, None] - objects[None]).abs().amax(-1) < 0.01
        times = torch.arange(len(objects)).expand_as(same)
        return path.progress[torch.where(same, times, -1).amax(-1)]
