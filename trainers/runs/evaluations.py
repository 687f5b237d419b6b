"""Evaluations as reports and model cards read them: what is unknown left out, figures side by side.

Besides outcomes (see ``comparison``) an evaluation may hold "figures", further numbers per category::

    {"figures": {category: {"reward": 0.4, "diversity": 0.05, ...}},
     "controls": {"blind": "the best guess from the question alone"}}    figures to hold the outcome against
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...numbers import mean, scalar

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """Figures of two evaluations.

    Attributes:
        categories: the columns.
        rows: the name of a figure, and per category its value (before, after); NaN where one is missing.
    """

    categories: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]


def known(evaluation: Json) -> dict[str, Any]:
    """The evaluation without attempts whose outcome is unknown (null, not finite); a note counts them.

    Lists as long as "success" ("score", "seeds") lose the same entries. A category without any known outcome goes.
    """
    outcomes, notes = {}, list(evaluation.get("notes", ()))
    for category, outcome in evaluation.get("outcomes", {}).items():
        values = [scalar(value) for value in outcome.get("success", ())]
        kept = [i for i, value in enumerate(values) if math.isfinite(value)]
        if len(kept) < len(values):
            notes.append(f"{category}: {len(values) - len(kept)} of {len(values)} attempts have no known outcome.")
        lists = {name: column for name, column in outcome.items() if len(column) == len(values)}
        lists = {name: [column[i] for i in kept] for name, column in lists.items()}
        if "score" in lists:
            lists["score"] = [scalar(value) for value in lists["score"]]
        if kept:
            outcomes[category] = {**outcome, **lists, "success": [values[i] for i in kept]}
    return {"iteration": 0, **evaluation, "outcomes": outcomes, "notes": notes}


def controls_of(evaluation: Json | None) -> dict[str, dict[str, float]]:
    """What a control is, in words -> category -> its value, and "mean" where every category has one."""
    found = {}
    figures = (evaluation or {}).get("figures") or {}
    for name, words in ((evaluation or {}).get("controls") or {}).items():
        values = {category: scalar(each.get(name)) for category, each in figures.items()}
        values = {category: value for category, value in values.items() if math.isfinite(value)}
        if values and len(values) == len(evaluation["outcomes"] if evaluation else ()):
            values["mean"] = mean(values.values())
        if values:
            found[words] = values
    return found


def figures_of(before: Json | None, after: Json | None) -> Figures | None:
    """The figures of both evaluations but for controls, in the order of their first appearance; None without any."""
    sides = [(each or {}).get("figures") or {} for each in (before, after)]
    categories = dict.fromkeys(category for side in sides for category in side)
    controls = {name for each in (before, after) for name in (each or {}).get("controls") or ()}
    names = dict.fromkeys(name for side in sides for figures in side.values() for name in figures)
    names = {name: None for name in names if name not in controls}

    def pair(category: str, name: str) -> tuple[float, float]:
        first, second = (scalar(side.get(category, {}).get(name)) for side in sides)
        return first, second

    rows = tuple((name, tuple(pair(category, name) for category in categories)) for name in names)
    return Figures(tuple(categories), rows) if rows else None
