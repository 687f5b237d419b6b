"""Lines and bars for what takes a while, so that nothing is silent for long.

    with working("cloning the policy", total=1000) as advance:
        for _ in range(1000):
            ...
            advance(1)

On a terminal it is a bar beside the others that go on. Elsewhere it is a line at the beginning, one every few seconds,
and one at the end if it took long. Processes other than the main one say nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

EVERY = 5.0
"""Seconds between two lines of the same work where there is no terminal."""
LONG = 2.0
"""Seconds from which on its end is told."""

_bars: list[Progress] = []
_telling: list[threading.Event] = []  # of works that go on within one another the last alone tells


def duration(seconds: float) -> str:
    """Seconds in words: "0.4 s", "53 s", "4 min", "2.1 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds % 1 else f"{seconds:.0f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def working(
    what: str, total: int | None = None, *, after: float = 0.0, every: float = EVERY
) -> Iterator[Callable[[int], None]]:
    """Say that something is being done, how far it is, and how long it took.

    Args:
        what: in words, such as "cloning the policy".
        total: how many steps it has, if that is known.
        after: seconds before the first line without a terminal; what is done sooner says nothing.
        every: seconds between two lines without a terminal.

    Returns:
        What is called with the number of steps that were done.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda steps: None
        return
    started = time.monotonic()
    with bars() as progress:
        show = _lines(what, total, after, every) if progress is None else _bar(progress, what, total)
        with show as advance:
            yield advance
    took = time.monotonic() - started
    if took >= max(after, min(LONG, every)):
        say(f"{what}: {duration(took)}")


@contextmanager
def bars() -> Iterator[Progress | None]:
    """The bars on the terminal, one set for all that goes on at once; None where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console()
    if _bars or not console.is_terminal:
        yield _bars[0] if _bars else None
        return
    counted = TextColumn("{task.fields[counted]}")
    status = TextColumn("{task.fields[status]}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        counted,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        status,
    )
    with Progress(*columns, console=console, transient=True) as progress:
        _bars.append(progress)
        try:
            yield progress
        finally:
            _bars.remove(progress)


def say(line: str) -> None:
    """Print a line, above the bars where there are some."""
    if _bars:
        _bars[0].console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        print(line, flush=True)


@contextmanager
def _bar(progress: Progress, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    handle = progress.add_task(what, total=total, counted="", status="")

    def advance(steps: int) -> None:
        progress.advance(handle, steps)
        progress.update(handle, counted=f"{progress.tasks[progress.task_ids.index(handle)].completed:g}/{total}")

    try:
        yield advance
    finally:
        progress.remove_task(handle)


@contextmanager
def _lines(what: str, total: int | None, after: float, every: float) -> Iterator[Callable[[int], None]]:
    done, over = [0], threading.Event()
    started = time.monotonic()
    if not after:
        say(f"{what} …")

    def tell() -> None:
        if after and over.wait(after):
            return
        if after:
            say(f"{what} …")
        while not over.wait(every):
            if _telling[-1] is not over:
                continue
            took = time.monotonic() - started
            left = f", {duration(took * (total - done[0]) / done[0])} left" if total and done[0] else ""
            say(f"  {what}: {f'{done[0]} of {total}' if total else duration(took)}{left}")

    def advance(steps: int) -> None:
        done[0] += steps

    teller = threading.Thread(target=tell, daemon=True, name="working")
    _telling.append(over)
    teller.start()
    try:
        yield advance
    finally:
        over.set()
        _telling.remove(over)
        teller.join()
