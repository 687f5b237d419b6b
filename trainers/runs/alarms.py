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
        leap: divergence of the policy from itself within one round, in nats per decision ("objective/kl"): of the old
            from the new, estimated on what the old one sampled.
        faults: share of rollouts that are spoilt, by a kind of fault ("faults/KIND") or by numbers that are not finite.
    """

    window: int = 5
    zero_spread: float = 0.95
    kl: float = 1.0
    entropy_share: float = 0.2
    reward_rise: float = 0.02
    judge_fall: float = 0.05
    leap: float = 100.0
    faults: float = 0.05


class Watcher:
    """Alarms of a run, whose newest iterations it remembers; each trouble is told once."""

    def __init__(self, limits: AlarmLimits) -> None:
        self.limits = limits
        self.recent: deque[Mapping[str, float]] = deque(maxlen=limits.window)
        self.first_entropy: dict[str, float] = {}
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
            self.first_entropy = {name: value for name, value in metrics.items() if name.endswith("objective/entropy")}
        self.iterations += 1
        self.recent.append(metrics)

    def check(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """Alarms of the newest iteration."""
        self._take_in(metrics)
        alarms = list[Alarm]()
        if metrics.get("rounds/idle"):
            alarms.append(Alarm("nobody learned", "", "the reward applied to no rollout of this round"))
        if metrics.get("steps/skipped"):
            alarms.append(Alarm("skipped step", "", "a step's gradient was not finite, and it was not taken"))
        for name in (name for name in metrics if name.endswith("objective/kl") and metrics[name] > self.limits.leap):
            player = name.removesuffix("objective/kl").rstrip("/")
            far = f"one round moved the policy by {metrics[name]:.3g} nats per decision from itself: lower --lr"
            alarms.append(Alarm("leap", player, far))
        for name in (name for name in metrics if name.endswith("precision/gap")):
            gap, bound = metrics[name], metrics[name.removesuffix("gap") + "bound"]
            if gap > bound:
                player = name.removesuffix("precision/gap").rstrip("/")
                far = f"sampling and learning differ by {gap:.2g} nats per decision at equal weights, and rounding"
                alarms.append(Alarm("precision", player, f"{far} explains {bound:.2g}: --dtype fp32 would tell why"))
        if self.iterations < self.limits.window:
            return alarms
        alarms += self._faults()
        for name in sorted(metrics):
            player, _, own = name.rpartition("/objective/") if "/objective/" in name else ("", "", name)
            own = f"objective/{own}" if player else own
            alarms += self._of(name, own, player)
        return alarms

    def _faults(self) -> list[Alarm]:
        """Kinds of faults ("faults/KIND", a share of a round's rollouts) that spoil more of the window than allowed."""
        rows = [
            {**row, "faults/numbers": row.get("rollouts/not_finite", 0.0) / max(1.0, _rollouts(row))}
            for row in self.recent
        ]
        alarms = []
        for name in sorted({name for row in rows for name in row if name.startswith("faults/")}):
            share = math.fsum(row.get(name, 0.0) for row in rows) / len(rows)
            if share > self.limits.faults:
                kind = name.removeprefix("faults/")
                what = "have no finite probability" if kind == "numbers" else f"are spoilt by the {kind}"
                alarms.append(Alarm("faults", kind, f"{share:.0%} of rollouts {what}"))
        return alarms

    def _of(self, name: str, own: str, player: str) -> list[Alarm]:
        """Alarms about one metric, which in a game has the name of its learner in front."""
        limits, now = self.limits, self._recent(name)
        if now is None:
            return []
        if own.endswith("groups/zero_spread") and now >= limits.zero_spread:
            about = own.removesuffix("groups/zero_spread").rstrip("/")
            return [Alarm("no signal", about, f"{now:.0%} of groups have no spread: nothing is learned from them")]
        if own.startswith("objective/kl_") and now > limits.kl:
            reference = own.removeprefix("objective/kl_")
            about = f"{player}: {reference}" if player else reference
            return [Alarm("drift", about, f"the policy is {now:.2f} nats per decision away from {reference}")]
        first = self.first_entropy.get(name)
        if own == "objective/entropy" and first is not None and first > 0 and now < limits.entropy_share * first:
            return [Alarm("entropy collapse", player, f"entropy is {now / first:.0%} of what it was at the start")]
        return []

    def _recent(self, name: str) -> float | None:
        """The mean over the window, where the metric was told."""
        values = [float(row[name]) for row in self.recent if row.get(name) is not None]
        values = [value for value in values if not math.isnan(value)]
        return math.fsum(values) / len(values) if values else None


def _rollouts(metrics: Mapping[str, float]) -> float:
    return metrics.get("rollouts", 0.0) + metrics.get("rollouts/not_finite", 0.0)


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
