"""Rollouts as plain state: for replay inside a checkpoint, and for rollouts that outlive an error.

What can be written without a pickle is kept: tensors, numpy arrays, PIL images, numbers, strings,
bools, None, and lists and mappings of those. Objects of other kinds are left out: an ``output`` or a
task field becomes None, an entry of ``extra`` or ``info`` is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...types import Rollout, Task

ARRAY, IMAGE = "__array__", "__image__"


def rollouts_state(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """A state that ``checkpoint.save`` takes; a task that several rollouts share is written once.

    Raises:
        TypeError: a payload or a score holds something that cannot be written; without it the
            rollout would be worthless.
    """
    tasks: dict[int, Task] = {}
    for rollout in rollouts:
        for task in (rollout.task, rollout.train_task):
            if task is not None:
                tasks.setdefault(id(task), task)
    place = {identity: i for i, identity in enumerate(tasks)}
    return {
        "tasks": [_task_state(task) for task in tasks.values()],
        "rollouts": [_rollout_state(rollout, place) for rollout in rollouts],
    }


def rollouts_from_state(state: Mapping[str, Any]) -> list[Rollout]:
    """The rollouts again; those that shared a task share it again."""
    tasks = [Task(**_task_fields(_restore(task))) for task in state["tasks"]]
    rollouts = []
    for saved in state["rollouts"]:
        values = _restore(saved)
        train = values["train_task"]
        values |= {"task": tasks[values["task"]], "train_task": None if train is None else tasks[train]}
        rollouts.append(Rollout(**values))
    return rollouts


def _task_state(task: Task) -> dict[str, Any]:
    values = {field.name: getattr(task, field.name) for field in fields(Task)}
    return {name: _kept(value) for name, value in values.items() if name != "extra"} | {"extra": _entries(task.extra)}


def _task_fields(saved: dict[str, Any]) -> dict[str, Any]:
    return saved | {"images": tuple(saved["images"] or ())}


def _rollout_state(rollout: Rollout, place: Mapping[int, int]) -> dict[str, Any]:
    train = rollout.train_task
    return {
        "task": place[id(rollout.task)],
        "train_task": None if train is None else place[id(train)],
        "output": _kept(rollout.output),
        "info": _entries(rollout.info),
        "payload": _portable(rollout.payload),
        "scores": _portable(rollout.scores),
        "log_probs": rollout.log_probs,
        "mask": rollout.mask,
        "segments": rollout.segments,
        "player": rollout.player,
        "version": rollout.version,
        "group": rollout.group,
        "states": list(rollout.states),
    }


def _entries(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that can be written."""
    kept = {}
    for key, value in values.items():
        with suppress(TypeError):
            kept[key] = _portable(value)
    return kept


def _kept(value: Any) -> Any:
    try:
        return _portable(value)
    except TypeError:
        return None


def _portable(value: Any) -> Any:
    """The value in tensors and plain types; TypeError where that is impossible."""
    if value is None or type(value) in (str, bool, int, float) or isinstance(value, Tensor):
        return value
    if isinstance(value, np.generic):
        return _portable(value.item())
    if isinstance(value, np.ndarray):
        return {ARRAY: torch.from_numpy(np.array(value, order="C"))}
    if isinstance(value, Image.Image):
        return {IMAGE: torch.from_numpy(np.array(value, order="C")), "mode": value.mode}
    if isinstance(value, Mapping):
        if not all(type(key) in (str, int) for key in value):
            raise TypeError("only mappings with str or int keys can be written")
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    raise TypeError(f"a {type(value).__name__} cannot be written without a pickle")


def _restore(value: Any) -> Any:
    if isinstance(value, list):
        return [_restore(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if ARRAY in value:
        return value[ARRAY].numpy()
    if IMAGE in value:
        return Image.fromarray(value[IMAGE].numpy(), value["mode"])
    return {key: _restore(item) for key, item in value.items()}
