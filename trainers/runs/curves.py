"""Curves of a report: outcomes at the evaluations, and every metric that changes, each curve once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from ...numbers import Interval, figure
from ...statistics import mean_of_intervals
from .charts import curve, trade_off
from .comparison import outcome_interval

Json = Mapping[str, Any]

MAX_CURVES = 24
"""Curves drawn per group of metrics."""
GROUP_ORDER = ("reward", "success", "score", "objective", "advantage", "curriculum")
QUERIES = "queries"
"""The metric that counts reward queries so far."""
REWARDS = ("reward", "category")
"""Groups of metrics that are rewards, drawn over reward queries where these are counted."""
DRIFTS = [f"{kind}_{start}" for kind in ("kl", "log_ratio") for start in ("start", "reference", "initial", "base")]
"""Last parts of the names of metrics that say how far a policy went, the first choice first."""


@dataclass
class Group:
    """Small charts under a heading.

    Attributes:
        charts: (name, chart).
        constant: "name value" of what never changed.
        same: "name: as OTHER" of curves that stand elsewhere.
        omitted: how many more there are.
    """

    title: str
    charts: list[tuple[str, Markup]] = field(default_factory=list)
    constant: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    omitted: int = 0


def along_training(evaluations: Mapping[str, Json]) -> dict[str, Json]:
    """Those that the run made itself: ``autotelic eval`` looks at other states, no points of the same curve."""
    own = ("before", "after", "iteration-")
    return {name: each for name, each in evaluations.items() if name.startswith(own)}


def evaluation_curves(evaluations: Mapping[str, Json], unit: str) -> list[Group]:
    """Outcomes over iterations with 95 % intervals, once there are more evaluations than before and after."""
    evaluations = along_training(evaluations)
    if len(evaluations) < 3:
        return []
    points: dict[str, list[tuple[float, float, Interval]]] = {}
    for each in evaluations.values():
        means, intervals = [], []
        for category, outcome in each["outcomes"].items():
            mean, interval = sum(outcome["success"]) / len(outcome["success"]), outcome_interval(outcome["success"])
            points.setdefault(category, []).append((each["iteration"], mean, interval))
            means.append(mean)
            intervals.append(interval)
        if len(means) > 1:
            overall = (each["iteration"], sum(means) / len(means), mean_of_intervals(means, intervals))
            points.setdefault("mean", []).append(overall)
    rates = all(
        set(outcome["success"]) <= {0, 1} for each in evaluations.values() for outcome in each["outcomes"].values()
    )
    names = sorted(points, key=lambda name: name != "mean")
    charts = [
        (name, curve([p[:2] for p in points[name]], intervals=[p[2] for p in points[name]], rates=rates))
        for name in names
    ]
    return [Group(f"{unit} at the evaluations, with 95 % intervals", charts)] if charts else []


def metric_curves(metrics: Sequence[Json]) -> list[Group]:
    """Small multiples of every metric, grouped by the prefix of its name; small groups share a row at the end."""
    groups: dict[str, list[str]] = {"reward": []}
    for name in dict.fromkeys(name for record in metrics for name in record if name != "iteration"):
        groups.setdefault(_group_of(name), []).append(name)
    small = [group for group, names in groups.items() if group != "reward" and len(names) < 3]
    further = [
        name for group in sorted(small, key=lambda group: (group == "time", group)) for name in groups.pop(group)
    ]
    rank = {group: i for i, group in enumerate(GROUP_ORDER)}
    found, drawn = [], dict[tuple[str, ...], str]()
    for group in sorted(groups, key=lambda group: (group == "time", rank.get(group, len(rank)))):
        names = sorted(groups[group], key=lambda name: (name != "reward", not name.startswith("reward"), name))
        found.append(_group(group, names, f"{group}/", metrics, drawn))
    found.append(_group("further metrics", further, "", metrics, drawn))
    return [group for group in found if group.charts or group.constant or group.same]


def _group(
    title: str, names: Sequence[str], prefix: str, metrics: Sequence[Json], drawn: dict[tuple[str, ...], str]
) -> Group:
    """A group's charts; ``drawn`` has the curves of the groups before by their values, and gets this one's."""
    group, queries = Group(title), _queries(metrics)
    for name in names:
        short, values = name.removeprefix(prefix), [record.get(name, math.nan) for record in metrics]
        finite = [value for value in values if math.isfinite(value)]
        if finite and min(finite) == max(finite):
            group.constant.append(f"{short} {figure(finite[0], digits=4)}")
            continue
        key = tuple(map(repr, values))
        if finite and key in drawn:
            group.same.append(f"{short} is {drawn[key]}")
            continue
        drawn[key] = name
        if len(group.charts) == MAX_CURVES:
            group.omitted += 1
        elif queries and _group_of(name) in REWARDS:
            points = list(zip(queries, values, strict=True))
            group.charts.append((short, curve(points, axis="reward queries")))
        else:
            points = [(record["iteration"], value) for record, value in zip(metrics, values, strict=True)]
            group.charts.append((short, curve(points)))
    return group


def _group_of(metric: str) -> str:
    return metric.partition("/")[0]


def queries_of(metrics: Sequence[Json]) -> float | None:
    """Reward queries of the whole run, where they are counted."""
    found = _queries(metrics)
    return found[-1] if found else None


def _queries(metrics: Sequence[Json]) -> list[float]:
    """Reward queries so far at every iteration; empty unless every iteration counts them and they never fall."""
    found = [record.get(QUERIES, math.nan) for record in metrics]
    grows = all(map(math.isfinite, found)) and found == sorted(found)
    return found if grows else []


def trade_off_of(metrics: Sequence[Json]) -> dict[str, Any] | None:
    """Reward against the first measure of drift that at least two iterations hold; None where there is none."""
    names = dict.fromkeys(name for record in metrics for name in record)
    for drift in DRIFTS:
        for name in (name for name in names if name.rpartition("/")[2] == drift):
            across = f"divergence from the {drift.rpartition('_')[2]} ({name})"
            points = [
                (record["iteration"], record.get(name, math.nan), record.get("reward", math.nan)) for record in metrics
            ]
            chart = trade_off(points, across, "reward")
            if chart is not None:
                narrow = trade_off(points, across, "reward", narrow=True)
                return {"chart": chart, "narrow": narrow, "estimate": drift.startswith("log_ratio")}
    return None
