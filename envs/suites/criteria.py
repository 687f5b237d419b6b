"""What counts as a success in suites that say it in an info or by a return alone."""

from __future__ import annotations

from dataclasses import dataclass

from ..simulator import Outcome


@dataclass(frozen=True)
class Told:
    """The environment says so in the info of a step."""

    key: str

    def __call__(self, outcome: Outcome) -> bool:
        return bool(outcome.info.get(self.key, False))


@dataclass(frozen=True)
class Return:
    """An episode of full length, which did not end before, whose return is ``least`` or more."""

    least: float
    steps: int

    def __call__(self, outcome: Outcome) -> bool:
        whole = outcome.steps >= self.steps and not outcome.terminated
        return whole and outcome.total_reward >= self.least


def earned(outcome: Outcome) -> bool:
    """The environment ended the episode, and paid for it: failures end it too, and pay nothing."""
    return outcome.terminated and outcome.total_reward > 0
