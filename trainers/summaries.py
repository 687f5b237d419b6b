"""What the processes tell each other of a round's rollouts: summaries, and no payloads.

A summary has the rollout's scores, each as one number, its task as it was sampled, and numbers and short texts of its
``info``; what a learner names in ``reads`` goes with it, whole. Reading anything else is an error that says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from numbers import Real
from typing import Any

import torch

from ..errors import UsageError
from ..types import Rollout, Task
from .distributed import gather
from .scoring import total_of

TEXT = 64
"""Characters of a text in ``info`` that is sent."""
SENT = ("truncated", "player", "version", "group")
ROLLOUT, TASK = (frozenset(field.name for field in fields(kind)) for kind in (Rollout, Task))
OF_TASK = ("id", "category", "seed", "horizon", "start", "parent", "privileged")


class _Partial:
    """Refuses, in one line, what was left out of a record."""

    def __getattribute__(self, name: str) -> Any:
        what, known = ("rollout.task", TASK) if issubclass(type(self), Task) else ("rollout", ROLLOUT)
        if name not in known or name in object.__getattribute__(self, "__dict__"):
            return object.__getattribute__(self, name)
        wanted = "task" if what == "rollout.task" else name
        raise UsageError(
            f"a learner looks at {what}.{name}, which stays in the process that made it: let its class say "
            f'reads = ("{wanted}",)'
        )


class Summary(_Partial, Rollout):
    """A rollout as other processes see it."""


class TaskSummary(_Partial, Task):
    """A task that an actor made, as other processes see it."""


def check_reads(name: str, reads: Iterable[str]) -> None:
    """Refuse a learner that names what no rollout has.

    Raises:
        UsageError: with what a rollout has.
    """
    if strange := sorted(set(reads) - ROLLOUT):
        raise UsageError(f"the learner {name!r} reads {strange[0]!r}: a rollout has {', '.join(sorted(ROLLOUT))}")


def of_everybody(rollouts: Sequence[Rollout], tasks: Sequence[Task], reads: Iterable[str] = ()) -> list[Rollout]:
    """Summaries of all processes' rollouts, in the order of the round's tasks; every process takes part.

    Args:
        rollouts: this process's.
        tasks: the round's, of all processes; they are not sent again.
        reads: names of a rollout's fields that are sent whole, "task" among them where an actor has made tasks anew.
    """
    wanted, places = frozenset(reads), {id(task): place for place, task in enumerate(tasks)}
    by_id = {task.id: place for place, task in enumerate(tasks)}
    made = []
    for sent, place in gather([_sent(rollout, places, wanted) for rollout in rollouts]):
        task = sent["task"]
        if isinstance(task, int):
            sent["task"] = tasks[task]
        elif isinstance(task, Mapping):
            sent["task"] = _record(TaskSummary, task)
        task = sent["task"]
        made.append((by_id.get(task.id, by_id.get(task.parent, place)), _record(Summary, sent)))
    return [summary for _, summary in sorted(made, key=lambda each: each[0])]


def _sent(rollout: Rollout, places: Mapping[int, int], reads: frozenset[str]) -> tuple[dict[str, Any], int]:
    """What is sent of a rollout, and where it stands if its task is none of the round's."""
    task = rollout.task
    sent: dict[str, Any] = {name: getattr(rollout, name) for name in SENT}
    sent["scores"] = {name: total_of(rollout, name) for name in rollout.scores}
    sent["info"] = {name: value for name, value in rollout.info.items() if _is_short(value)}
    sent["task"] = places.get(id(task), task if "task" in reads else {name: getattr(task, name) for name in OF_TASK})
    sent |= {name: _apart(getattr(rollout, name)) for name in reads - {"task"}}
    return sent, len(places)


def _is_short(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, str) and len(value) <= TEXT)


def _apart(value: Any) -> Any:
    """The value with tensors of their own, on the CPU: a view would be sent with all that it is a view of."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, Mapping):
        return {name: _apart(part) for name, part in value.items()}
    return type(value)(_apart(part) for part in value) if type(value) in (list, tuple) else value


def _record(kind: Any, content: Mapping[str, Any]) -> Any:
    made = object.__new__(kind)
    vars(made).update(content)
    return made
