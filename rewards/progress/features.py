"""Features of states for progress critics: relations between hand, objects and goal, or plain numbers.

Where it is known what the numbers of an observation are, critics see relations between hand, objects and
goal rather than raw positions, because few demonstrations cover few places. Which relations they use is a
named choice, reported with every result: "goal" relations make a task with a marked goal much easier to
judge. Where nothing is known, they see the numbers and how they changed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError

logger = logging.getLogger(__name__)

PAIRED = 64
"""So many numbers of an observation at most are compared in pairs; there are 2,016 of these."""
RELATIONS = (
    "hand-object",
    "hand-moved",
    "object-moved",
    "object-turned",
    "second-moved",
    "hand-second",
    "gripper",
    "object-goal",
    "hand-goal",
)
GOAL_FREE = tuple(name for name in RELATIONS if "goal" not in name)
PARTS = ("hand", "gripper", "object", "object_rotation", "second", "second_rotation", "goal")
"""What a layout may name for relations and critics; it may name more for others."""

POSITIONS = ("hand", "object", "second", "goal")
"""Those of them that are places, and so have the same number of coordinates."""

OF_THE_WORLD = ("object-moved", "object-turned", "second-moved", "object-goal")
OF_THE_HAND = ("hand-goal", "hand-moved")


def parts_of(relation: str) -> tuple[str, ...]:
    """What a layout has to name for a relation."""
    if relation in ("gripper", "object-turned"):
        return ("gripper" if relation == "gripper" else "object_rotation",)
    first, second = relation.split("-")
    return (first,) if second == "moved" else (first, second)


def relations_in(layout: Mapping[str, slice], *, goals: bool = True) -> tuple[str, ...]:
    """The relations whose parts a layout names; none if no end can be told by them."""
    found = tuple(r for r in (RELATIONS if goals else GOAL_FREE) if all(part in layout for part in parts_of(r)))
    return found if {*OF_THE_WORLD, *OF_THE_HAND} & set(found) else ()


def axes_of(layout: Mapping[str, slice]) -> int:
    """Coordinates of a layout's positions; 0 where it names none.

    Raises:
        UsageError: they differ, and one could not be subtracted from the other.
    """
    sizes = {name: (layout[name].stop or 0) - (layout[name].start or 0) for name in POSITIONS if name in layout}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise UsageError(f"positions of a layout have the same number of coordinates, and {told}")
    return next(iter(sizes.values()), 0)


def check_shown(demonstrations: Sequence[Any]) -> None:
    """Refuse demonstrations (``observations`` [N+1, D]) that nothing can be learned from.

    Raises:
        UsageError: there is none, their observations have different sizes, or one holds NaN or infinity.
    """
    if not demonstrations:
        raise UsageError("a critic learns from one demonstration or more")
    sizes = {tuple(np.shape(d.observations)[1:]) for d in demonstrations}
    if len(sizes) > 1 or any(len(size) != 1 for size in sizes):
        raise UsageError(f"demonstrations have observations [N + 1, D] of one size D, not {sorted(sizes)}")
    for index, demonstration in enumerate(demonstrations):
        broken = ~np.isfinite(np.asarray(demonstration.observations)).all(1)
        if broken.any():
            which = f"observation {int(broken.argmax())} of demonstration {index}"
            raise UsageError(f"{which} ({demonstration.instruction!r}) holds NaN or infinity")


class Features(Protocol):
    """What critics and end conditions ask of a way to look at states."""

    @property
    def layout(self) -> Mapping[str, slice]:
        """Where things stand in an observation; empty where that is not known."""
        ...

    def __call__(self, observations: Tensor, initial: Tensor) -> Tensor:
        """[N, D] observations and the first ones of their episodes -> [N, F]."""
        ...

    def relation(self, name: str, now: Tensor, initial: Tensor) -> Tensor:
        """One relation as vectors [N, d]."""
        ...

    def end_relations(self) -> Iterator[tuple[str, ...]]:
        """Relations by which an end may be told; a later tuple is asked for only where no earlier one tells it."""
        ...

    def fitted(self, demonstrations: Sequence[Any]) -> Self:
        """The same, with scales taken from demonstrations (``observations`` [N+1, D]) if it has any."""
        ...

    @property
    def spread(self) -> tuple[float, ...]:
        """[D] how far each number goes in demonstrations; empty without scales."""
        ...

    def scales(self) -> list[float]:
        """What ``fitted`` set, to be kept."""
        ...

    def scaled(self, scales: Sequence[float]) -> Self:
        """The same with kept scales."""
        ...


@dataclass(frozen=True)
class RelationFeatures:
    """[N, D] observations and the [N, D] first observations of their episodes -> [N, F] features.

    Attributes:
        layout: where things stand in an observation, as slices; see PARTS. Positions have any number of
            coordinates, the same for all.
        names: which of RELATIONS to use; :func:`relations_in` finds those that a layout allows.
        unit: metres per unit of the features.
        near: metres below which a distance counts as none, in its logarithm.

    Raises:
        ValueError: no such relation, or the layout lacks a part of one.
        UsageError: positions of different sizes.
    """

    spread: ClassVar[tuple[float, ...]] = ()

    layout: Mapping[str, slice]
    names: tuple[str, ...] = RELATIONS
    unit: float = 0.1
    near: float = 0.01

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in RELATIONS]
        if unknown:
            raise ValueError(f"unknown relation {unknown[0]!r}; there are {', '.join(RELATIONS)}")
        lacking = [(name, part) for name in self.names for part in parts_of(name) if part not in self.layout]
        if lacking:
            (name, part), known = lacking[0], ", ".join(self.layout) or "none"
            raise ValueError(f"relation {name!r} needs {part!r}, and the layout names {known}")
        axes_of(self.layout)

    def __call__(self, observations: Tensor, initial: Tensor) -> Tensor:
        parts = []
        for name in self.names:
            vector = self.relation(name, observations, initial)
            if name not in ("gripper", "object-turned"):
                distance = vector.norm(dim=-1, keepdim=True)
                parts += [vector / self.unit, ((distance + self.near) / self.unit).log()]
            else:
                parts.append(vector)
        return torch.cat(parts, -1)

    def relation(self, name: str, now: Tensor, initial: Tensor) -> Tensor:
        """One relation as a vector [N, 3], [N, 4] or [N, 1]: metres, quaternion components, opening."""
        where = [self.layout[part] for part in parts_of(name)]
        if name == "gripper":
            return now[:, where[0]]
        return now[:, where[0]] - (now[:, where[1]] if len(where) > 1 else initial[:, where[0]])

    def end_relations(self) -> Iterator[tuple[str, ...]]:
        for group in (OF_THE_WORLD, OF_THE_HAND):
            yield tuple(name for name in group if name in self.names)

    def fitted(self, demonstrations: Sequence[Any]) -> Self:
        return self

    def scales(self) -> list[float]:
        return []

    def scaled(self, scales: Sequence[float]) -> Self:
        return self


@dataclass(frozen=True)
class StateFeatures:
    """Any observation: its numbers and their change since the start, in units of the demonstrations' spread.

    Nothing needs to be known about what the numbers are. :meth:`fitted` sets ``centre`` and ``spread`` [D], and which
    numbers are ``moving``; one that the demonstrations hold constant is measured by the mean spread. Values are cut at
    ``limit`` spreads.
    """

    centre: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    limit: float = 5.0
    moving: tuple[int, ...] = field(default=(), compare=False)

    @property
    def layout(self) -> Mapping[str, slice]:
        return {}

    def fitted(self, demonstrations: Sequence[Any]) -> Self:
        seen = torch.cat([torch.as_tensor(d.observations, dtype=torch.float32) for d in demonstrations])
        spread = seen.std(0) if len(seen) > 1 else torch.zeros(seen.shape[-1])
        moves = spread > 1e-6
        typical = spread[moves].mean() if bool(moves.any()) else torch.ones(())
        moving = tuple(moves.nonzero()[:, 0].tolist())
        spread = torch.where(moves, spread, typical)
        return replace(self, centre=tuple(seen.mean(0).tolist()), spread=tuple(spread.tolist()), moving=moving)

    def scales(self) -> list[float]:
        return [*self.centre, *self.spread]

    def scaled(self, scales: Sequence[float]) -> Self:
        half = len(scales) // 2
        return replace(self, centre=tuple(scales[:half]), spread=tuple(scales[half:]))

    def __call__(self, observations: Tensor, initial: Tensor) -> Tensor:
        self._check(observations)
        spread = torch.tensor(self.spread)
        parts = ((observations - torch.tensor(self.centre)) / spread, (observations - initial) / spread)
        return torch.cat(parts, -1).clamp(-self.limit, self.limit)

    def relation(self, name: str, now: Tensor, initial: Tensor) -> Tensor:
        """[N, 1]: "state-3" is the fourth number, "moved-3" its change, "apart-3-5" how far it is from the sixth.

        In spreads, "apart" in the larger of the two.
        """
        self._check(now)
        kind, *where = name.split("-")
        first = int(where[0])
        spread = max(self.spread[int(i)] for i in where)
        value = now[:, first]
        if kind == "state":
            value = value - self.centre[first]
        else:
            value = value - (initial[:, first] if kind == "moved" else now[:, int(where[1])])
        return value[:, None] / spread

    def end_relations(self) -> Iterator[tuple[str, ...]]:
        yield tuple(f"{kind}-{i}" for kind in ("state", "moved") for i in range(len(self.spread)))
        chosen = self.moving
        if len(chosen) > PAIRED:
            logger.warning(
                "no single number of an observation tells the end, and %d of %d change: only pairs of the %d that "
                "change most are tried", len(chosen), len(self.spread), PAIRED
            )  # fmt: skip
            chosen = tuple(sorted(sorted(chosen, key=lambda i: -self.spread[i])[:PAIRED]))
        yield tuple(f"apart-{i}-{j}" for i in chosen for j in chosen if i < j)

    def _check(self, observations: Tensor) -> None:
        if not self.spread:
            raise ValueError("StateFeatures take their scales from demonstrations: call fitted first")
        if observations.shape[-1] != len(self.spread):
            had = f"observations of {len(self.spread)} numbers were shown"
            raise ValueError(f"{had}, and one of {observations.shape[-1]} is to be judged")
