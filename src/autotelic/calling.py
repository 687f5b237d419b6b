"""How a reward is called: one convention for functions of every origin.

A function names the columns that it wants. ``completions`` (as TRL hands them: messages where the prompt is a chat),
``outputs`` (as the policy made them) and ``episodes`` are always what was made; ``images`` is always what the task
shows, as lists of PIL images. Functions of diffusion libraries know no inputs and mean by ``images`` what was drawn:
they name nothing else that was made, such as DDPO's (images, prompts, metadata). They get that where no task shows an
image, and are refused where one does. A reward with gradient, and DDPO's, is handed drawn pictures as one tensor
[B, 3, H, W], everybody else as a list.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .errors import UsageError
from .families import name_of, needs_of
from .images import as_pil
from .types import Task

MADE = ("outputs", "completions", "episodes")
"""Columns of what a policy made."""
OF_THE_CALL = ("trainer_state", "log_metric", "log_extra")
"""Arguments that are one for the whole call and no column."""
OF_TOKENS = "completion_ids"
"""A column that only policies of tokens have."""
RESERVED = frozenset(
    {"tasks", "prompts", "references", "images", "groups", "players", "log_probs", "rollouts", OF_TOKENS}
    | {*MADE, *OF_THE_CALL}
)
"""Names that a column of one's own data cannot have."""
METADATA = ("metadata", "prompt_metadata")
"""What DDPO's functions call the further columns of a prompt, together."""
FIRST_IMAGE = "image"
"""What functions of data sets with one image call it."""
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Shown(Sequence[Any]):
    """The column ``images``: per task a list of PIL images, None where it shows none; opened when it is looked at."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = list(tasks)
        self._open: dict[int, list[Image.Image]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return Shown(self._tasks[row])
        task = self._tasks[row]
        if not task.images:
            return None
        if id(task) not in self._open:
            images = enumerate(task.images, 1)
            self._open[id(task)] = [as_pil(image, f"{task.id}: image {place}") for place, image in images]
        return self._open[id(task)]

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    @property
    def any(self) -> bool:
        """Whether some task shows an image; opens none."""
        return any(task.images for task in self._tasks)


def completion_of(task: Task, output: Any) -> Any:
    """An output as TRL hands it: messages where the prompt is a chat, else as it is."""
    if not isinstance(output, str) or isinstance(task.prompt, str) or not isinstance(task.prompt, Sequence):
        return output
    several = getattr(output, "messages", None)  # a conversation's
    return [{"role": "assistant", "content": output}] if several is None else several()


# --- in ---------------------------------------------------------------------------------------------------------------


def parameters_of(function: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """The keywords that a function names, and whether it takes any other."""
    asked = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = inspect.signature(asked).parameters.values()
    except (TypeError, ValueError):  # built-in functions may hide theirs
        return {}, True
    named = {p.name: p for p in parameters if p.kind in _NAMED}
    return named, any(p.kind == p.VAR_KEYWORD for p in parameters)


def call(function: Callable[..., Any], columns: Mapping[str, Any], *, differentiable: bool | None = None) -> Any:
    """What a reward function returns for these columns, an awaitable where it is asynchronous.

    Raises:
        UsageError: a column that it needs is missing, or it names ``images`` alone where tasks show some.
    """
    named, others = parameters_of(function)
    if differentiable is None:
        differentiable = bool(getattr(function, "differentiable", False))
    table = offered(named, columns, differentiable=differentiable)
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in table:
            raise UsageError(f'it needs the column "{name}", and there is {", ".join(sorted(table))}')
    return function(**(table if others else {name: table[name] for name in named if name in table}))


def offered(named: Collection[str], columns: Mapping[str, Any], *, differentiable: bool = False) -> dict[str, Any]:
    """The columns as a function that names some of them is to see them (see the module), in lists of its own."""
    table = {key: list(column) if type(column) is list else column for key, column in columns.items()}
    if FIRST_IMAGE in named and FIRST_IMAGE not in table and isinstance(table.get("images"), Shown):
        table[FIRST_IMAGE] = [None if row is None else row[0] for row in table["images"]]
    made = table.get("outputs")
    if made is None or not are_pictures(made):
        return table | _metadata(named, table)
    ddpo = "images" in named and bool(set(METADATA) & set(named)) and not set(MADE) & set(named)
    if (differentiable or ddpo) and not isinstance(made, Tensor):
        made = stacked(made)
        table |= dict.fromkeys([column for column in MADE if column in table], made)
    if "images" in named and not {*MADE, "rollouts"} & set(named):
        shown = table.get("images")
        if isinstance(shown, Shown) and shown.any:
            raise UsageError("it names images, which are what the tasks show: what was drawn is named outputs")
        table["images"] = made
    return table | _metadata(named, table)


def _metadata(named: Collection[str], table: Mapping[str, Any]) -> dict[str, Any]:
    wanted = [name for name in METADATA if name in named and name not in table]
    rows = [dict(task.extra) for task in table.get("tasks", ())] if wanted else []
    return dict.fromkeys(wanted, rows)


def are_pictures(made: Any) -> bool:
    """Whether a column holds pictures, arrays or PIL images."""
    if isinstance(made, Tensor | np.ndarray):
        return made.ndim >= 4
    first = next((one for one in made if one is not None), None)
    return isinstance(first, Image.Image) or (isinstance(first, Tensor | np.ndarray) and first.ndim == 3)


def stacked(pictures: Sequence[Any]) -> Tensor:
    """Pictures as one tensor [B, 3, H, W] in 0..1; tensors stay as exact as they are.

    Raises:
        UsageError: they are of several sizes.
    """
    tensors = [one if isinstance(one, Tensor) else _tensor(one, row) for row, one in enumerate(pictures)]
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) > 1:
        raise UsageError(f"it is handed pictures as one tensor, and their shapes are {shapes[0]} and {shapes[1]}")
    return torch.stack(tensors)


def _tensor(picture: Any, row: int) -> Tensor:
    pixels = np.array(as_pil(picture, f"sample {row}"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def check_columns(tasks: Iterable[Task]) -> None:
    """Refuse columns of one's own data that have the name of another.

    Raises:
        UsageError: in one line the column and a task that has it.
    """
    for task in tasks:
        if taken := sorted(RESERVED & task.extra.keys()):
            raise UsageError(
                f'the column "{taken[0]}" of {task.id} has the name of one that every reward is handed: rename it'
            )


def require_columns(reward: Any, tasks: Iterable[Task], *, tokens: bool = False) -> None:
    """Refuse a reward whose columns no task has, or which cannot read a task's reference, before anything runs.

    A reward names what it needs in an attribute ``needs``; of a function, the parameters without default count. One
    with a method ``check`` (reference, extra columns) raises ValueError there for a reference that it cannot read.

    Args:
        tokens: the policy is one of tokens, so that completions have ids.

    Raises:
        UsageError: one line with the reward, the column, and what the tasks have; with the task and its reference; or
            with a column that has a reserved name.
    """
    tasks = list(tasks)
    check_columns(tasks)
    always = RESERVED - {"references"} - (set() if tokens else {OF_TOKENS})
    extra = {name for task in tasks for name, value in task.extra.items() if value is not None}
    extra |= {FIRST_IMAGE} if any(task.images for task in tasks) else set()
    present = always | extra | ({"references"} if any(task.reference is not None for task in tasks) else set())
    for term in (term for _, term in getattr(reward, "terms", [(1.0, reward)])):
        for column in _needs(getattr(term, "function", term)):
            if column == OF_TOKENS not in present:
                raise UsageError(f'reward {name_of(term)} needs the column "{column}", which policies of tokens have')
            if column not in present and column not in METADATA:
                have = ", ".join(sorted(present - always)) or "neither references nor extra columns"
                raise UsageError(
                    f'reward {name_of(term)} needs the column "{column}", and none of the {len(tasks)} tasks has it: '
                    f"they have {have}"
                )
        check_references(term, tasks)


def check_references(reward: Any, tasks: Iterable[Task]) -> None:
    """Refuse a reference, or what else a verifier ``needs`` of a task, that it cannot read, before anything runs.

    A verifier has a method ``check`` (reference, the columns that it ``reads``), which raises there; others pass.

    Raises:
        UsageError: one line with reward, task and what is wrong.
    """
    function = getattr(reward, "function", reward)
    check: Any = getattr(function, "check", None)
    for task in tasks if check is not None else ():
        if has(task, needs_of(function)):
            try:
                check(task.reference, {name: task.extra.get(name) for name in getattr(function, "reads", ())})
            except (ValueError, TypeError) as error:
                said = str(error).removeprefix("sample 0: ")
                raise UsageError(f"reward {name_of(reward)}, task {task.id}: {said}") from error


def has(task: Task, columns: Sequence[str]) -> bool:
    """Whether a task has values in columns."""
    values = (task.reference if name == "references" else task.extra.get(name) for name in columns)
    return all(value is not None and value != [] for value in values)


def _needs(function: Any) -> tuple[str, ...]:
    if hasattr(function, "needs"):
        return tuple(function.needs)
    return tuple(name for name, p in parameters_of(function)[0].items() if p.default is p.empty)


def picked(columns: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The columns of some rows, which may come several times; what is one for the whole call stays."""
    table = {name: column if name in OF_THE_CALL else [column[row] for row in rows] for name, column in columns.items()}
    if "log_extra" in columns:
        whole, count = columns["log_extra"], len(columns["outputs"])

        def log_extra(name: str, values: Sequence[Any]) -> None:
            placed = dict(zip(rows, values, strict=True))
            whole(name, [placed.get(row) for row in range(count)])

        table["log_extra"] = log_extra
    return table


# --- waiting ----------------------------------------------------------------------------------------------------------


def settled(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of several calls; what is asynchronous waits together, in a loop of its own that goes on."""
    results: list[Any] = []
    try:
        for make in calls:
            results.append(make())
    except BaseException:
        for result in results:
            if inspect.iscoroutine(result):
                result.close()
        raise
    waiting = [row for row, result in enumerate(results) if inspect.isawaitable(result)]
    if waiting:
        for row, done in zip(waiting, _awaited([results[row] for row in waiting]), strict=True):
            results[row] = done
    return results


def _awaited(several: Sequence[Awaitable[Any]]) -> list[Any]:
    async def together() -> list[Any]:
        return await asyncio.gather(*several, return_exceptions=True)

    future = asyncio.run_coroutine_threadsafe(together(), _loop(os.getpid()))
    try:
        found = future.result()
    except BaseException:  # Ctrl-C
        future.cancel()
        raise
    for result in found:
        if isinstance(result, BaseException):
            raise result
    return found


@functools.cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """One loop for all calls, since clients of servers belong to the loop that they were first used in."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name=f"rewards of {process}").start()
    return loop
