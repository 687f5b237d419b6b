"""One process or several: sums over processes through accelerate, and whole groups per process.

Start several with ``accelerate launch`` or ``torchrun``; nothing else changes. Objectives divide by
counts over all processes, so gradients are summed here, never averaged.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed.nn  # before a group exists: see _leave
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env
from torch import Tensor

from ..errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")


def _state() -> PartialState:
    """This process among all. Without the word CPU, processes on a machine without a GPU each believe to be alone."""
    _leave_at_exit()
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


@cache
def _leave_at_exit() -> None:
    atexit.register(_leave)


def _leave() -> None:
    """End gloo's threads while Python still runs: one that lets go of a tensor afterwards aborts the process.

    They end with the last reference to the group. ``torch.distributed.nn`` takes one for each of its functions, as the
    default of an argument, if it is imported (by torch's compiler, for one) once there is a group.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()


def processes() -> int:
    """How many processes take part."""
    return int(_state().num_processes)


def is_main() -> bool:
    """Whether this process writes files and talks to people."""
    return bool(_state().is_main_process)


def device() -> torch.device:
    """The device of this process: its GPU where there is one."""
    return torch.device(_state().device)


def barrier() -> None:
    """Wait for every process."""
    _state().wait_for_everyone()


def reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over processes; the tensor itself with one process."""
    if processes() == 1:
        return tensor
    total = tensor.detach().clone().to(device())
    torch.distributed.all_reduce(total)
    return total.to(tensor.device)


def reduce_counts(counts: dict[str, float]) -> dict[str, float]:
    """Sum a dictionary of numbers over processes (all hold the same keys)."""
    total = reduce_sum(torch.tensor(list(counts.values()), dtype=torch.float64))
    return dict(zip(counts, total.tolist(), strict=True))


def reduce_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over processes, in one message."""
    if processes() == 1:
        return
    wanted = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in wanted])
    flat = reduce_sum(flat)
    for parameter, gradient in zip(wanted, torch.split(flat, [p.numel() for p in wanted]), strict=True):
        parameter.grad = gradient.view_as(parameter).clone()


def share(groups: Sequence[Item]) -> list[Item]:
    """This process's part of a list of whole groups."""
    state = _state()
    return list(groups[state.process_index :: state.num_processes])


def gather(items: list[Any]) -> list[Any]:
    """Every process's items, in process order."""
    return items if processes() == 1 else list(gather_object(items))


def spread(items: Sequence[Item], at_once: int, work: Callable[[Sequence[Item]], Iterable[Result]]) -> list[Result]:
    """What ``work`` gives for all items, in their order, everywhere; each process does a part.

    Args:
        at_once: how many items ``work`` gets in one call.
    """
    state = _state()
    each = -(-len(items) // int(state.num_processes))
    mine = items[state.process_index * each :][:each]
    return gather([result for first in range(0, len(mine), at_once) for result in work(mine[first : first + at_once])])


def same_everywhere(what: str, value: object) -> None:
    """Refuse to go on where processes hold different values.

    Raises:
        UsageError: in every process, with the value of each.
    """
    values = gather([value])
    if any(other != values[0] for other in values):
        raise UsageError(f"the processes hold different {what}: {', '.join(map(str, values))}")


def from_main(value: Item) -> Item:
    """The main process's value, everywhere."""
    if processes() == 1:
        return value
    box: list[Any] = [value]
    broadcast_object_list(box)
    result: Item = box[0]
    return result
