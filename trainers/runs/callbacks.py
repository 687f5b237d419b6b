"""Callbacks: what is told of a run while it goes on, such as to a tracker.

A callback subclasses ``Callback`` and writes the methods that it wants. It is given small values, never the loop's own
objects, and runs in the main process alone. What it raises ends the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...types import Verdict


@dataclass(frozen=True)
class RunInfo:
    """What a callback is told first.

    Attributes:
        path: the run's folder.
        recipe, config: what runs, as config.json has it.
        max_steps: iterations of all stages.
        iteration: how many a resumed run has behind it.
    """

    path: Path
    recipe: str
    config: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int = 0
    iteration: int = 0


class Callback:
    """Does nothing at any moment of a run."""

    def on_start(self, run: RunInfo) -> None:
        """Before the first iteration, of a resumed run too."""

    def on_iteration(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """After every iteration, with its metrics."""

    def on_evaluation(self, iteration: int, name: str, evaluation: Mapping[str, Any]) -> None:
        """After an evaluation ("before", "iteration-000010", "after")."""

    def on_gate(self, iteration: int, verdict: Verdict) -> None:
        """After a gate's verdict was carried out."""

    def on_end(self, error: BaseException | None = None) -> None:
        """At the end, whatever ended the run."""
