"""One process or several: sums over processes, and whole groups per process.

Start several with ``accelerate launch`` or ``torchrun``; nothing else changes. Objectives divide by
counts over all processes, so gradients are summed here, never averaged.

What is small (counts, metrics, summaries) goes through the CPU, gradients through the device. Processes that wait for
one that does not come end with a line that names it.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed.nn  # before a group exists: see _leave
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store

from ..errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")

BUCKET = 2**26
"""Bytes of gradients that are summed in one message."""

_seconds = [1800.0]  # how long a process is waited for
_meetings = count(1)


def wait_at_most(seconds: float) -> None:
    """How long processes wait for one that does not come; every process calls it, with the same number."""
    _seconds[0] = seconds


def _state() -> PartialState:
    """This process among all. Without the word CPU, processes on a machine without a GPU each believe to be alone."""
    _enter()
    return PartialState(cpu=_on_cpu())


@cache
def _enter() -> None:
    """Refuse more processes than there are GPUs, which NCCL cannot serve, and leave in good order in the end."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not _on_cpu() and torch.cuda.is_available() and here > (cards := torch.cuda.device_count()):
        raise UsageError(
            f"{here} processes on {cards} GPU{'s' * (cards != 1)}: start one per GPU, or set ACCELERATE_USE_CPU=true "
            "to run them all on the CPU"
        )
    atexit.register(_leave)


def _on_cpu() -> bool:
    """Whether all runs on the CPU: where that is asked for, without a GPU, and with Apple's, which has no float64."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return bool(parse_flag_from_env("ACCELERATE_USE_CPU")) or device is None or device.type == "mps"


def _leave() -> None:
    """End gloo's threads while Python still runs: one that lets go of a tensor afterwards aborts the process.

    They end with the last reference to the group. ``torch.distributed.nn`` takes one for each of its functions, as the
    default of an argument, if it is imported (by torch's compiler, for one) once there is a group.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()
    _group.cache_clear()


def processes() -> int:
    """How many processes take part."""
    return int(_state().num_processes)


def rank() -> int:
    """Which of them this is, from 0."""
    return int(_state().process_index)


def is_main() -> bool:
    """Whether this process writes files and talks to people."""
    return bool(_state().is_main_process)


def device() -> torch.device:
    """The device of this process: its GPU where there is one."""
    return torch.device(_state().device)


# --- meeting ----------------------------------------------------------------------------------------------------------


@cache
def _group(seconds: float) -> Any:
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=seconds))


def _meet(work: Callable[[Any], Result]) -> Result:
    """Do what every process takes part in, on the CPU's group, and count it where all can see.

    Raises:
        UsageError: somebody did not come, or left; the message says who.
    """
    here, number = rank(), next(_meetings)
    group = _group(_seconds[0])
    _get_default_store().set(f"autotelic/{here}", str(number))
    try:
        return work(group)
    except RuntimeError as error:
        missing = [other for other in range(processes()) if other != here and _met(other) < number]
        if not missing:
            raise
        late = "Timed out" in str(error)
        did = f"did not come within {_seconds[0]:g} seconds" if late else "left"
        raise UsageError(
            f"process {' and '.join(map(str, missing))} of {processes()} {did} while the others waited: "
            + ("a simulator, a reward or a server may be stuck" if late else "its own message says why")
        ) from error


def _met(other: int) -> int:
    """How often a process has met the others."""
    store, name = _get_default_store(), f"autotelic/{other}"
    try:
        return int(store.get(name)) if store.check([name]) else 0
    except RuntimeError:  # who kept the store has left
        return 0


def barrier() -> None:
    """Wait for every process."""
    if processes() > 1:
        _meet(lambda group: torch.distributed.barrier(group=group))


def reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over processes; the tensor itself with one process."""
    if processes() == 1:
        return tensor
    total = tensor.detach().to("cpu", copy=True)
    _meet(lambda group: torch.distributed.all_reduce(total, group=group))
    return total.to(tensor.device)


def reduce_counts(counts: dict[str, float]) -> dict[str, float]:
    """Sum a dictionary of numbers over processes (all hold the same keys)."""
    total = reduce_sum(torch.tensor(list(counts.values()), dtype=torch.float64))
    return dict(zip(counts, total.tolist(), strict=True))


def reduce_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over processes, in place, ``BUCKET`` bytes at a time.

    A weight that has no gradient in any process has none afterwards.
    """
    if processes() == 1:
        return
    wanted = [p for p in parameters if p.requires_grad]
    used = reduce_sum(torch.tensor([p.grad is not None for p in wanted], dtype=torch.int32))
    wanted = [p for p, times in zip(wanted, used.tolist(), strict=True) if times]
    for parameter in wanted:
        if parameter.grad is None or not parameter.grad.is_contiguous():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
    for bucket in _buckets([p.grad for p in wanted if p.grad is not None]):
        flat = bucket[0] if len(bucket) == 1 else torch.cat([gradient.reshape(-1) for gradient in bucket])
        if flat.is_cpu:
            _meet(lambda group, flat=flat: torch.distributed.all_reduce(flat, group=group))  # type: ignore[misc]
        else:
            torch.distributed.all_reduce(flat)
        if len(bucket) > 1:
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [part.view_as(g) for part, g in zip(parts, bucket, strict=True)])


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In their order, of one type and device each, of at most ``BUCKET`` bytes or of one tensor."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        fits = sum(g.nbytes for g in bucket) + gradient.nbytes <= BUCKET
        if bucket and not (fits and (gradient.dtype, gradient.device) == (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def share(groups: Sequence[Item]) -> list[Item]:
    """This process's part of a list of whole groups."""
    state = _state()
    return list(groups[state.process_index :: state.num_processes])


def gather(items: Sequence[Any]) -> list[Any]:
    """Every process's items, in process order."""
    if processes() == 1:
        return list(items)
    everyone: list[Any] = [None] * processes()
    _meet(lambda group: torch.distributed.all_gather_object(everyone, list(items), group=group))
    return [item for each in everyone for item in each]


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
    _meet(lambda group: torch.distributed.broadcast_object_list(box, src=0, group=group, device=torch.device("cpu")))
    result: Item = box[0]
    return result
