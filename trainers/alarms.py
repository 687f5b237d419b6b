"""Signs that a run fools itself, read from its metrics and from what the gate saw.

Each alarm is a line in the run folder and a warning on the screen, once per trouble and run. None stops a
run: that is the gate's part.
"""

from __future__ import annotations

import math
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


def check_metrics(history: Sequence[Mapping[str, Any]], limits: AlarmLimits) -> list[Alarm]:
    """Alarms of the newest iteration, from metrics of all iterations in order."""
    alarms: list[Alarm] = []
    if len(history) < limits.window:
        return alarms
    spread = _recent(history, "groups/zero_spread", limits.window)
    if spread is not None and spread >= limits.zero_spread:
        alarms.append(Alarm("no signal", "", f"{spread:.0%} of groups have no spread: nothing is learned from them"))
    for name in sorted(name for name in history[-1] if name.startswith("objective/kl_")):
        kl, reference = _recent(history, name, limits.window), name.removeprefix("objective/kl_")
        if kl is not None and kl > limits.kl:
            alarms.append(Alarm("drift", reference, f"the policy is {kl:.2f} nats per decision away from {reference}"))
    first, now = history[0].get("objective/entropy"), _recent(history, "objective/entropy", limits.window)
    if first is not None and now is not None and first > 0 and now < limits.entropy_share * first:
        alarms.append(Alarm("entropy collapse", "", f"entropy is {now / first:.0%} of what it was at the start"))
    return alarms


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


def _recent(history: Sequence[Mapping[str, Any]], name: str, window: int) -> float | None:
    values = [float(row[name]) for row in history[-window:] if row.get(name) is not None]
    values = [v for v in values if not math.isnan(v)]
    return math.fsum(values) / len(values) if values else None
