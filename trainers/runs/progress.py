"""What a person sees while a run goes on: a rich progress bar, or plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Shows the iteration and the reward.

    Args:
        total: iterations of the whole run; done: those a resumed run has behind it.
        quiet: show nothing (processes other than the main one).
    """

    def __init__(self, total: int, done: int, *, quiet: bool = False) -> None:
        self.total, self.quiet = total, quiet
        self.console = Console()
        self.bar: RichProgress | None = None
        if self.console.is_terminal and not quiet:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = RichProgress(*columns, TextColumn("{task.fields[status]}"), console=self.console)
            self.handle = self.bar.add_task("training", total=total, completed=done, status="")

    def show(self, iteration: int, metrics: Mapping[str, float]) -> None:
        if self.quiet:
            return
        status = f"reward {metrics.get('reward', float('nan')):.3f}"
        if self.bar is not None:
            self.bar.update(self.handle, completed=iteration, status=status)
        else:
            seconds = metrics.get("time/act", 0.0) + metrics.get("time/learn", 0.0)
            print(f"iteration {iteration}/{self.total}  {status}  {seconds:.1f} s", flush=True)

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.bar is not None:
            self.bar.stop()
