"""Which environments this process has tried, and the trial of those that it has not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .env_checker import INSTANCES, Checked, Mode
from .process import Call, Here, Process, WorkerDied, exchange
from .simulator import EnvSpec, Feature, View, spec_of
from .worker import CHECKING

logger = logging.getLogger(__name__)

_checked: dict[str, tuple[EnvSpec, bool, Checked]] = {}
"""What checks of this process found: by environment its spec, whether pictures were compared, and the outcome."""


@dataclass(frozen=True)
class Joined:
    """What a pool knows of an environment: features, its own cameras, how its episodes are run, where things stand."""

    features: Mapping[str, Feature]
    cameras: tuple[str, ...]
    mode: Mode
    layout: Mapping[str, slice]


def join(workers: Sequence[Here | Process], environments: Sequence[str], view: View | None) -> dict[str, Joined]:
    """Have environments described, and tried where this process has not, each by one worker.

    What does not hold is logged in a line.

    Args:
        view: compare pictures too, taken like this.

    Raises:
        Refusal: one cannot be used at all.
    """
    trials = [
        _Trial(worker, environments[index :: len(workers)], view)
        for index, worker in enumerate(workers[: len(environments)])
    ]
    answers = exchange([Call(trial.worker, "describe", trial.arguments, trial.blame) for trial in trials])
    joined = {}
    for trial, answer in zip(trials, answers, strict=True):
        for name, (features, cameras, layout, checked) in zip(trial.names, answer, strict=True):
            if checked is not None:
                _checked[name] = spec_of(name), view is not None, checked
                for line in checked.warnings:
                    logger.warning("%s: %s", name, line)
            known = _checked.get(name)
            mode = trial.unknown if known is None or trial.deaths > 1 else known[2].mode
            joined[name] = Joined(features, cameras, mode, layout)
    return joined


def is_checked(name: str, view: View | None) -> bool:
    """Whether an environment was tried in this process, with pictures if they are wanted."""
    spec, pictures, _ = _checked.get(name, (None, False, None))
    return spec is spec_of(name) and (pictures or view is None)


class _Trial:
    """Environments that one worker is to describe, and to try where this process has not; but not to death."""

    unknown = Mode(restores=False, room=INSTANCES)

    def __init__(self, worker: Here | Process, names: Sequence[str], view: View | None) -> None:
        self.worker, self.names, self.view, self.deaths = worker, names, view, 0

    def arguments(self) -> tuple[Any, ...]:
        new = [name for name in self.names if not is_checked(name, self.view)]
        return self.names, () if self.deaths > 1 else new, self.view

    def blame(self, death: WorkerDied) -> bool:
        """Whether it was a check that a worker died of; the second time, environments are used without."""
        if death.row != CHECKING:
            return False
        self.deaths += 1
        if self.deaths > 1:
            names = ", ".join(self.names)
            logger.warning("%s: its check ends worker processes (%s): an instance per episode", names, death)
        return True
