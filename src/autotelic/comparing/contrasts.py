"""What finished runs show: contrasts paired over seeds, curves over rounds, fronts of outcome against a price.

Seeds are the unit of every interval here; episodes and questions are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import UsageError, unknown
from ..numbers import Interval, mean
from ..statistics import holm, holm_levels, mean_interval, mean_p
from ..sweep import MEAN, Results, Run

Word = Literal["shown", "reversed", "undecided"]
ALPHA = 0.05
Pair = tuple[str, str]
"""An arm, and the one that it is said to be better than."""


@dataclass(frozen=True)
class Contrast:
    """An arm against another in one measure, paired over the seeds that both have.

    Attributes:
        better, than: it was written down that the first one is better.
        of: what is compared: the measure "after", or its "change" where the two did not set out from the same.
        seeds: better minus than, per seed.
        interval: Student's t at 95 %; None with one seed.
        corrected: the same at the level at which Holm's procedure tests this contrast: it holds 0 exactly where the
            correction for the family leaves the contrast undecided.
        p: two-sided paired t test; ``holm`` the same, corrected over the family; None with one seed.
        word: "shown" where the corrected interval is above 0, "reversed" where it is below, else "undecided".
    """

    better: str
    than: str
    measure: str
    of: Literal["after", "change"]
    seeds: tuple[float, ...]
    mean: float
    interval: Interval | None = None
    corrected: Interval | None = None
    p: float | None = None
    holm: float | None = None
    word: Word = "undecided"


def contrasts(
    results: Results, pairs: Sequence[Pair], measures: Sequence[str] = (MEAN,), *, common: bool = False
) -> list[Contrast]:
    """Every pair in every measure. All that are returned are one family for Holm's correction.

    Args:
        common: the arms set out from the same weights, even where they do not act alike with them.

    Raises:
        UsageError: there is no such arm or measure, or two arms share no seed.
    """
    rows = [_contrast(results, pair, measure, common) for pair in pairs for measure in measures]
    return corrected(rows)


def by_category(results: Results, pairs: Sequence[Pair], *, common: bool = False) -> list[Contrast]:
    """The same in every category that all arms have, as a family of its own; nothing where there is one category."""
    shared = [set(run.measures("after")) for runs in results.runs.values() for run in runs]
    first = next(iter(results.runs.values()))[0].measures("after") if shared else {}
    names = [name for name in first if name != MEAN and "/" not in name and all(name in one for one in shared)]
    return contrasts(results, pairs, names, common=common) if len(names) > 1 else []


def corrected(rows: Sequence[Contrast]) -> list[Contrast]:
    """Holm's correction over all rows, and the word of each."""
    known = [row for row in rows if row.p is not None]
    p_values = [float(row.p) for row in known if row.p is not None]
    each = iter(zip(holm(p_values), holm_levels(p_values, ALPHA), strict=True))
    found = []
    for row in rows:
        if row.p is not None:
            adjusted, level = next(each)
            bounds = mean_interval(row.seeds, level)
            row = replace(row, holm=adjusted, corrected=bounds, word=word_of(bounds))
        found.append(row)
    return found


def word_of(interval: Interval | None) -> Word:
    """What an interval of a difference says."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "undecided"
    return "shown" if interval[0] > 0 else "reversed"


def _contrast(results: Results, pair: Pair, measure: str, common: bool) -> Contrast:
    better, than = pair
    ours, theirs = results.by_seed(better), results.by_seed(than)
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        raise UsageError(f'"{better}" and "{than}" have no seed in common')
    same = common or all(ours[seed].measures("before") == theirs[seed].measures("before") for seed in seeds)
    a, b = ([_values(runs[seed], same) for seed in seeds] for runs in (ours, theirs))
    if any(measure not in row for row in (*a, *b)):
        raise unknown("measure", measure, [name for name in a[0] if all(name in row for row in (*a, *b))])
    differences = tuple(x[measure] - y[measure] for x, y in zip(a, b, strict=True))
    row = Contrast(better, than, measure, "after" if same else "change", differences, mean(differences))
    several = len(differences) > 1
    return replace(row, interval=mean_interval(differences), p=mean_p(differences)) if several else row


def _values(run: Run, same_start: bool) -> dict[str, float]:
    after = run.measures("after")
    if same_start:
        return after
    before = run.measures("before")
    return {name: value - before[name] for name, value in after.items() if name in before}


# --- curves -------------------------------------------------------------------------------------

Point = tuple[float, float]


def curve(runs: Sequence[Sequence[Point]]) -> list[dict[str, float]]:
    """Points of several seeds, by their place on the axis: mean, and its 95 % interval over seeds where there are two.

    Places that not every seed has are left out, and so are values that are not finite.
    """
    at: dict[float, list[float]] = {}
    for run in runs:
        for place, value in run:
            if math.isfinite(value):
                at.setdefault(place, []).append(value)
    rows = []
    for place, values in sorted(at.items()):
        if len(values) == len(runs):
            row = {"at": place, "mean": round(mean(values), 6)}
            if len(values) > 1:
                low, high = mean_interval(values)
                row |= {"low": round(low, 6), "high": round(high, 6)}
            rows.append(row)
    return rows


# --- fronts -------------------------------------------------------------------------------------


def front(points: Mapping[str, Point]) -> list[str]:
    """Of (price, outcome) the names that no other beats in both: not dearer and not worse, and one of them better."""

    def beaten(mine: Point) -> bool:
        return any(p <= mine[0] and o >= mine[1] and (p, o) != mine for p, o in points.values())

    return sorted((name for name, point in points.items() if not beaten(point)), key=lambda name: points[name])


def fronts(results: Results, measure: str, prices: Mapping[str, Callable[[Run], float | None]]) -> dict[str, Any]:
    """Per price the arms' (price, outcome), means over seeds, and who is on the front; arms without the price are told.

    Args:
        measure: the outcome, after.
        prices: name -> what a run paid; None where it is not known.
    """
    found: dict[str, Any] = {}
    for name, price in prices.items():
        points: dict[str, Point] = {}
        for arm, runs in results.runs.items():
            pairs = [(price(run), run.measures("after").get(measure)) for run in runs]
            whole = [(float(p), float(o)) for p, o in pairs if p is not None and o is not None]
            if len(whole) == len(pairs):
                points[arm] = (round(mean(p for p, _ in whole), 6), round(mean(o for _, o in whole), 6))
        unknown_to = [arm for arm in results.runs if arm not in points]
        found[name] = {"points": points, "front": front(points), "unknown": unknown_to}
    return found
