"""Base classes with defaults: what the loop asks of learners, curricula and advantages beyond their one method.

A class of one's own subclasses them and writes that method; ``require`` refuses, when a run is built, what has neither.
Actors have bases in ``actors``, gates in ``gates``, objectives in ``objectives``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .. import types
from ..errors import UsageError
from ..types import Batch, Players, Rollout, Task, Verdict


class Learner(ABC):
    """Whatever changes in a run. Its state is empty unless it says otherwise.

    Attributes:
        players: whose rollouts it sees; in a game every learner has to say.
        sees_own_rollouts_only: with several processes, each sees its own groups, and is called even where it has none;
            its metrics are put together (``metrics``). Else everybody sees the same, summaries of all rollouts: scores
            as one number each, the task as it was sampled, ``info`` as far as it is numbers and short texts.
        reads: what of a rollout such a learner looks at beyond that, such as "output" or "payload", or "task" where an
            actor made tasks anew; it is sent to every process.
    """

    players: Players = None
    sees_own_rollouts_only: bool = False
    reads: Sequence[str] = ()

    def check(self, group_size: int) -> None:
        """Refuse, when the run is built, what cannot be learned from groups of this size."""

    @abstractmethod
    def update(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Learn from scored rollouts; returns metrics. "learned" is 0 where there was nothing to learn from."""

    def repair(self, verdict: Verdict) -> dict[str, float]:
        """Called after a rollback that asks for repair."""
        return {}

    def slow_down(self, factor: float) -> None:
        """Called when a run went back because it diverged: multiply learning rates by the factor."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Checkpoints, resuming and rollback restore every learner."""


class Curriculum(Learner):
    """A learner that chooses the tasks; it sees every player's rollouts."""

    players: Players = "all"

    @abstractmethod
    def sample(self, n: int) -> list[Task]:
        """The next n tasks."""


class Advantage(ABC):
    """How much better an attempt was than its comparison set: a batch -> [B, T], zero where the mask is False.

    Attributes:
        compares: with the others of a group: a rollout whose group has lost all others is not learned from.
        needs: "values" asks the policy for what states are worth (``batch.values``).
    """

    compares: bool = False
    needs: frozenset[str] = frozenset()

    def check(self, group_size: int) -> None:
        """Refuse, when the run is built, groups of a size that leaves nothing to compare."""

    def metrics(self, batch: Batch) -> dict[str, float]:
        """What it tells of a batch beside the advantages: of this process's, as an objective's metrics are."""
        return {}

    def value_targets(self, batch: Batch) -> Tensor | None:
        """[B, S] what the policy's values should become, where it knows."""
        return None

    @abstractmethod
    def __call__(self, batch: Batch) -> Tensor: ...


class FunctionAdvantage(Advantage):
    """A plain function ``Batch -> [B, T]`` as an advantage."""

    def __init__(self, function: Callable[[Batch], Tensor]) -> None:
        self.function = function

    def __call__(self, batch: Batch) -> Tensor:
        return self.function(batch)


def advantage_of(value: types.Advantage | Callable[[Batch], Tensor] | None) -> types.Advantage | None:
    """A plain function, as a user writes it, gets the defaults of the base class."""
    return value if value is None or isinstance(value, Advantage) else FunctionAdvantage(value)


class Shaping(ABC):
    """Reward shaping: adds to ``batch.shaping`` [B, T], after the log-probabilities that it needs are there."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of log-probabilities, "log_probs:NAME"."""
        return frozenset()

    @abstractmethod
    def __call__(self, batch: Batch) -> Batch: ...


ASKED: Mapping[str, type] = {
    "actor": types.Actor,
    "policy": types.Policy,
    "learner": types.Learner,
    "curriculum": types.Curriculum,
    "gate": types.Gate,
}
BASES = {
    "actor": "trainers.actors.Actor",
    "policy": "trainers.policy.TorchPolicy",
    "learner": "trainers.contracts.Learner",
    "curriculum": "trainers.contracts.Curriculum",
    "gate": "trainers.gates.Gate",
}


def require(kind: str, value: Any, name: str = "") -> None:
    """Refuse an object of one's own that lacks a part of its contract, when a run is built.

    Raises:
        UsageError: in one line the object's class, what it lacks, and the base class that has it.
    """
    if missing := [part for part in sorted(parts_of(ASKED[kind])) if not hasattr(value, part)]:
        called = f" {name!r}" if name else ""
        raise UsageError(
            f"the {kind}{called} ({type(value).__name__}) lacks {', '.join(missing)}: "
            f"subclass autotelic.{BASES[kind]}, which has defaults"
        )


def parts_of(protocol: type) -> set[str]:
    """Names of a protocol's methods and attributes."""
    own = {name for base in protocol.__mro__ for name in (*vars(base), *vars(base).get("__annotations__", ()))}
    return {name for name in own if not name.startswith("_")} | ({"__call__"} & set(vars(protocol)))
