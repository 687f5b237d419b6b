"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Self

from ...types import Verdict
from ...working import bars, duration, say


class Progress:
    """Shows the iteration, the reward, the time that is left, and what a gate decides.

    Args:
        total: iterations of the whole run; done: those a resumed run has behind it.
        quiet: show nothing (processes other than the main one).
    """

    def __init__(self, total: int, done: int, *, quiet: bool = False) -> None:
        self.total, self.done, self.quiet = total, done, quiet
        self.stack = ExitStack()
        self.bar: Any = None
        self.seconds = 0.0

    def show(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """After an iteration. What is left is reckoned by all that took time since the run began or went on."""
        if self.quiet:
            return
        seconds = metrics.get("time/act", 0.0) + metrics.get("time/learn", 0.0)
        self.seconds += seconds
        status = f"reward {metrics.get('reward', float('nan')):.3f}"
        if self.bar is not None:
            counted = f"{iteration}/{self.total}"
            self.bar.update(self.handle, completed=iteration, counted=counted, status=status)
            return
        each = max(self.seconds, time.monotonic() - self.started) / max(1, iteration - self.done)
        left = f", {duration(each * (self.total - iteration))} left" if iteration < self.total else ""
        say(f"iteration {iteration}/{self.total}  {status}  {duration(seconds)}{left}")

    def decided(self, iteration: int, verdict: Verdict) -> None:
        """After a gate's look."""
        if not self.quiet:
            stop = ", stop" if verdict.stop else ""
            say(f"gate after iteration {iteration}: {verdict.decision}{stop}: {verdict.reason}")

    def __enter__(self) -> Self:
        self.started = time.monotonic()
        if not self.quiet:
            self.bar = self.stack.enter_context(bars())
        if self.bar is not None:
            counted = f"{self.done}/{self.total}"
            self.handle = self.bar.add_task(
                "training", total=self.total, completed=self.done, counted=counted, status=""
            )
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stack.close()
        self.bar = None
