"""One function of fixed tensors as a CUDA graph: thousands of launches become one. Not tried on a card in this form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor


class Uncapturable(Exception):
    """A function that waits for the host, or whose shapes depend on data."""


class Captured:
    """A function without arguments, recorded once and replayed.

    Args:
        function: works on tensors that stay where they are, asks nothing of the host, and has no shape that depends
            on data. Under autocast its casts must not be kept (``cache_enabled=False``).
        changed: the tensors that it changes and that count; recording leaves them as they were.
        pool: a handle of memory that functions share which never run at once and leave nothing there.

    Raises:
        Uncapturable: it does ask the host.
    """

    def __init__(self, function: Callable[[], None], changed: Sequence[Tensor], pool: Any = None) -> None:
        before = [tensor.clone() for tensor in changed]
        aside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries allocate what they need at first
            for _ in range(2):
                function()
                _write(before, changed)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph, pool=pool):  # records, and computes nothing
                function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise Uncapturable(str(error).partition("\n")[0]) from error

    def __call__(self) -> None:
        self.graph.replay()


def _write(values: Sequence[Tensor], places: Sequence[Tensor]) -> None:
    for value, place in zip(values, places, strict=True):
        place.copy_(value)


@dataclass(frozen=True)
class Comparison:
    """A function run step by step and replayed: whether all that it changed is equal to the bit, and seconds a call."""

    equal: bool
    eager: float
    replayed: float


def compare(function: Callable[[], None], changed: Sequence[Tensor], calls: int = 16) -> Comparison:
    """The same calls from the same beginning, both ways; on the current CUDA device."""
    before, found, seconds = [tensor.clone() for tensor in changed], [], []
    for run in (function, Captured(function, changed)):
        run()
        _write(before, changed)
        torch.cuda.synchronize()
        start = perf_counter()
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
        seconds.append((perf_counter() - start) / calls)
        found.append([tensor.clone() for tensor in changed])
        _write(before, changed)
    equal = all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    return Comparison(equal, seconds[0], seconds[1])
