"""Signs that a run fools itself, read from its metrics and from what the gate saw.

Each alarm is a line in the run folder and a warning on the screen, once per trouble and run. None stops a
run: that is the gate's part.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Alarm:
    """A sign of trouble, what it is about (a category, a reference, or nothing in particular), and the numbers."""

    alarm: str
    about: str
    detail: str


@dataclass(frozen=True)
class AlarmLimits:
    """When to speak.

    Attributes:
        window: iterations that a trend is read over.
        zero_spread: share of groups whose members all score the same.
        kl: divergence from a reference, in nats per decision ("objective/kl_reference" of a ``KLPenalty``).
        entropy_share: entropy as a share of the first iteration's; a density's entropy that begins below
            zero is not judged.
        reward_rise, judge_fall: the training reward rose and the judge fell by these at one gate look.
    """

    window: int = 5
    zero_spread: float = 0.95
    kl: float = 1.0
    entropy_share: float = 0.2
    reward_rise: float = 0.02
    judge_fall: float = 0.05


class Watcher:
    """Alarms of a run, whose newest iterations it remembers; each trouble is told once."""

    def __init__(self, limits: AlarmLimits) -> None:
        self.limits = limits
        self.recent: deque[Mapping[str, float]] = deque(maxlen=limits.window)
        self.first_entropy: float | None = None
        self.known: set[tuple[str, str]] = set()
        self.iterations = 0

    def resume(self, history: Sequence[Mapping[str, float]], alarms: Sequence[Mapping[str, Any]]) -> None:
        """Remember a run as its folder has it."""
        self.recent.clear()
        self.iterations = 0
        for metrics in history:
            self._take_in(metrics)
        self.known = {(row["alarm"], row["about"]) for row in alarms}

    def new(self, alarms: Sequence[Alarm]) -> list[Alarm]:
        """Those of the alarms that were not told before; they are known from now on."""
        fresh = {(alarm.alarm, alarm.about): alarm for alarm in alarms}
        fresh = {key: alarm for key, alarm in fresh.items() if key not in self.known}
        self.known |= fresh.keys()
        return list(fresh.values())

    def _take_in(self, metrics: Mapping[str, float]) -> None:
        if not self.iterations:
            self.first_entropy = metrics.get("objective/entropy")
        self.iterations += 1
        self.recent.append(metrics)

    def check(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """Alarms of the newest iteration."""
        self._take_in(metrics)
        limits, alarms = self.limits, list[Alarm]()
        if metrics.get("rounds/idle"):
            alarms.append(Alarm("nobody learned", "", "the reward applied to no rollout of this round"))
        if self.iterations < limits.window:
            return alarms
        spread = self._recent("groups/zero_spread")
        if spread is not None and spread >= limits.zero_spread:
            detail = f"{spread:.0%} of groups have no spread: nothing is learned from them"
            alarms.append(Alarm("no signal", "", detail))
        for name in sorted(name for name in metrics if name.startswith("objective/kl_")):
            kl, reference = self._recent(name), name.removeprefix("objective/kl_")
            if kl is not None and kl > limits.kl:
                detail = f"the policy is {kl:.2f} nats per decision away from {reference}"
                alarms.append(Alarm("drift", reference, detail))
        first, now = self.first_entropy, self._recent("objective/entropy")
        if first is not None and now is not None and first > 0 and now < limits.entropy_share * first:
            alarms.append(Alarm("entropy collapse", "", f"entropy is {now / first:.0%} of what it was at the start"))
        return alarms

    def _recent(self, name: str) -> float | None:
        """The mean over the window, where the metric was told."""
        values = [float(row[name]) for row in self.recent if row.get(name) is not None]
        values = [value for value in values if not math.isnan(value)]
        return math.fsum(values) / len(values) if values else None


def check_evidence(evidence: Mapping[str, Any], limits: AlarmLimits) -> list[Alarm]:
    """Categories where the training reward rose while the gate's judge fell."""
    alarms = []
    for category, row in evidence.items():
        rise = row.get("reward_change_from_base")
        if rise is None or "base" not in row:
            continue
        fall = row["base"] - row["candidate"]
        if rise >= limits.reward_rise and fall >= limits.judge_fall:
            detail = f"{category}: the reward rose by {rise:.2f} while the gate's judge fell by {fall:.2f}"
            alarms.append(Alarm("reward hacking", category, detail))
    return alarms
