"""Actors: bases for policies, for what stands around a policy in training alone, for systems of parts, and for games.

The actor is what a run evaluates, gates, forks and promotes. What stands around a policy is one of two things:

* ``TrainingWrapper``: scaffolding, such as an actor that shows demonstrations. A fork drops it, and so does evaluation.
* ``SystemWrapper``: a part of the system, such as a memory, a search, a router, or adapting and resetting. A fork keeps
  it, and reports show the system, and the bare policy beside it.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch

from ..errors import UsageError
from ..types import Key, Mode, Rollout, Task
from .randomness import generator


class Actor(ABC):
    """Attempts tasks. By default it is one player, without state, and looked at as it is."""

    players: tuple[str, ...] = ("policy",)

    @abstractmethod
    def act(
        self, tasks: Sequence[Task], n: int, *, key: Key = (0,), mode: Mode = "train", greedy: bool = False
    ) -> list[Rollout]:
        """n attempts per task, in task order; random numbers depend on (key, task id, sample) alone."""

    def evaluated(self) -> Any:
        """What reports, gates and promotion look at."""
        return self

    def bare(self) -> Any:
        """The policy inside by itself."""
        return self

    def fork(self, name: str) -> Any:
        """A frozen copy of what is evaluated."""
        return copy.deepcopy(self)

    def copy_from(self, other: Any, mix: float = 1.0) -> None:
        """Take over another's state."""
        if mix != 1.0:
            raise UsageError(f"{type(self).__name__} cannot be mixed with another: copy all of it, not {mix:g}")
        self.load_state_dict(copy.deepcopy(other.state_dict()))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Checkpoints, resuming and rollback come here."""


class TrainingWrapper(Actor):
    """Scaffolding around a policy: subclasses say in ``attempt`` what happens in training instead of the policy's act.

    Evaluation, gates, forks and promotion see the policy (or system) inside.
    """

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.players = policy.players

    @abstractmethod
    def attempt(self, tasks: Sequence[Task], n: int, *, key: Key, **sampling: Any) -> list[Rollout]:
        """What ``act`` returns in training; there may be other numbers of rollouts than n per task."""

    def act(
        self, tasks: Sequence[Task], n: int, *, key: Key = (0,), mode: Mode = "train", greedy: bool = False, **rest: Any
    ) -> list[Rollout]:
        if mode == "train":
            return self.attempt(tasks, n, key=key, **rest, **({"greedy": True} if greedy else {}))
        rollouts: list[Rollout] = self.evaluated().act(tasks, n, key=key, mode=mode, greedy=greedy, **rest)
        return rollouts

    def evaluated(self) -> Any:
        return self.policy.evaluated()

    def bare(self) -> Any:
        return self.evaluated().bare()

    def fork(self, name: str) -> Any:
        return self.evaluated().fork(name)

    def copy_from(self, other: Any, mix: float = 1.0) -> None:
        self.policy.copy_from(other.evaluated(), mix)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.policy.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(state)


class Demonstrations(TrainingWrapper):
    """Shows demonstrations instead of acting: ``per_step`` random ones per round, or all of them (0)."""

    def __init__(self, policy: Any, rollouts: Sequence[Rollout], per_step: int = 0) -> None:
        super().__init__(policy)
        self.rollouts, self.per_step = list(rollouts), per_step

    def attempt(self, tasks: Sequence[Task], n: int, *, key: Key, **sampling: Any) -> list[Rollout]:
        if not self.per_step:
            return list(self.rollouts)
        chosen = torch.randint(len(self.rollouts), (self.per_step,), generator=generator("shown", *key)).tolist()
        return [replace(self.rollouts[i], group=f"shown/{i}/{row}") for row, i in enumerate(chosen)]


class SystemWrapper(Actor):
    """A system of parts around ``policy``; a subclass names in ``parts`` the attributes that have a state.

    A part is an actor, or anything with ``state_dict`` and ``load_state_dict``, such as a learner that is a memory. One
    object under two names is one part: forked, copied and saved once. Other attributes are shared by forks. A part that
    changes in training is among the stage's learners, or a rollback leaves it as it is.
    """

    parts: ClassVar[tuple[str, ...]] = ("policy",)
    policy: Any

    def bare(self) -> Any:
        return self.policy.bare()

    def _parts(self) -> dict[str, Any]:
        """Each part once, by the first name that it has."""
        unique = {id(part): name for name in reversed(self.parts) if (part := getattr(self, name)) is not None}
        return {name: getattr(self, name) for name in self.parts if unique.get(id(getattr(self, name))) == name}

    def fork(self, name: str) -> Self:
        other, parts = copy.copy(self), self._parts().values()
        forked: dict[int, Any] = {id(part): part.fork(name) for part in parts if isinstance(part, Actor)}
        for part in parts:  # what holds another part holds its fork
            forked[id(part)] = copy.deepcopy(part, forked)
        for attribute in self.parts:
            if (part := getattr(self, attribute)) is not None:
                setattr(other, attribute, forked[id(part)])
        return other

    def copy_from(self, other: Any, mix: float = 1.0) -> None:
        """Every part from its counterpart; only actors can be mixed, and only where they themselves can."""
        theirs = other.evaluated()._parts()
        for name, part in self._parts().items():
            if isinstance(part, Actor):
                part.copy_from(theirs[name].evaluated(), mix)
            elif mix != 1.0:
                raise UsageError(f"the {name} of a {type(self).__name__} cannot be mixed: copy all of it, not {mix:g}")
            else:
                part.load_state_dict(copy.deepcopy(theirs[name].state_dict()))

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])


class Game(SystemWrapper):
    """Several players who answer each other. A subclass names them, and writes ``play``.

    In training ``play`` returns the rollouts of all players, each with its ``player`` set. Evaluation and gates judge
    one of them, ``judged``, who then attempts the tasks alone; ``policy`` is that player's.

    Attributes:
        players: their names; every learner of the run says whose rollouts it learns from.
        judged: which of them is evaluated.
    """

    judged: str = ""

    @abstractmethod
    def play(self, tasks: Sequence[Task], n: int, *, key: Key, **sampling: Any) -> list[Rollout]:
        """One round of the game on every task."""

    def act(
        self, tasks: Sequence[Task], n: int, *, key: Key = (0,), mode: Mode = "train", greedy: bool = False, **rest: Any
    ) -> list[Rollout]:
        if mode == "train":
            rollouts = self.play(tasks, n, key=key, **rest)
            if strange := sorted({rollout.player for rollout in rollouts} - set(self.players)):
                raise UsageError(f"{type(self).__name__} returned a rollout of {strange[0]!r}: it names {self.players}")
            return rollouts
        judged: list[Rollout] = self.policy.act(tasks, n, key=key, mode=mode, greedy=greedy, **rest)
        for rollout in judged:
            rollout.player = self.judged or self.players[0]
        return judged
