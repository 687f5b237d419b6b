"""Charts of several arms as SVG text: curves, an outcome against a price, differences. Colours come from the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from .charts import Scale, axis_of, bar, path_of, percent, place, short, svg, text, width_of, written

WIDTH, COLOURS = 860, 8


def lines(series: Mapping[str, Sequence[Mapping[str, float]]], *, rates: bool = False) -> Markup:
    """A line per arm over rounds, named at its end.

    Args:
        series: arm -> points with "at" and "mean".
        rates: values are shares, written in percent.
    """
    points = {arm: [(row["at"], row["mean"]) for row in rows] for arm, rows in series.items() if rows}
    values = [y for rows in points.values() for _, y in rows]
    ends = [x for rows in points.values() for x, _ in rows]
    names = max(width_of(arm) for arm in points)
    height, top, bottom, right = 300, 14, 34, min(300.0, names + 20)
    low, high, ticks = axis_of(min(values), max(values))
    marks = _marks(ticks, rates)
    left = 16 + width_of(max(marks, key=len, default=""))
    x = Scale(min(ends), max(ends) if max(ends) > min(ends) else min(ends) + 1, left, WIDTH - right)
    y = Scale(low, high, height - bottom, top)
    parts = _across(ticks, marks, y, left, WIDTH - right)
    parts += [
        text(left, height - 10, place(min(ends)), "start"),
        text(WIDTH - right, height - 10, place(max(ends)), "end"),
    ]
    parts.append(text((left + WIDTH - right) / 2, height - 10, "rounds", "middle"))
    levels = _apart({arm: y(rows[-1][1]) for arm, rows in points.items()}, 13, top, height - bottom)
    for i, (arm, rows) in enumerate(points.items()):
        parts.append(f'<path class="arm {_colour(i)}" d="{path_of(rows, x, y)}"/>')
        parts.append(text(x(rows[-1][0]) + 7, levels[arm] + 3.5, arm, "start", f"arm{i % COLOURS}"))
    return svg(WIDTH, height, parts)


def scatter(
    points: Mapping[str, tuple[float, float]], front: Sequence[str], across: str, up: str, *, rates: bool = False
) -> Markup:
    """A dot per arm at (price, outcome), and the front as a line through those on it."""
    xs, ys = ([point[i] for point in points.values()] for i in (0, 1))
    height, top, bottom, right = 340, 34, 46, 160
    (x_low, x_high, x_ticks), (y_low, y_high, y_ticks) = axis_of(min(xs), max(xs)), axis_of(min(ys), max(ys))
    marks = _marks(y_ticks, rates)
    left = 20 + width_of(max(marks, key=len, default=""))
    x, y = Scale(x_low, x_high, left, WIDTH - right), Scale(y_low, y_high, height - bottom, top)
    parts = _across(y_ticks, marks, y, left, WIDTH - right)
    for tick, mark in zip(x_ticks, written(x_ticks), strict=True):
        parts.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(text(x(tick), height - bottom + 17, mark, "middle"))
    parts.append(text((left + WIDTH - right) / 2, height - 8, across, "middle", "axis"))
    parts.append(text(left, top - 18, up, "start", "axis"))
    best = sorted(points[arm] for arm in front)
    parts.append(f'<path class="front" d="{path_of(best, x, y)}"/>')
    levels = _apart({arm: y(point[1]) for arm, point in points.items()}, 13, top, height - bottom)
    for i, (arm, (price, outcome)) in enumerate(points.items()):
        told = f"<title>{escape(f'{arm}: {across} {short(price)}, {up} {short(outcome)}')}</title>"
        parts.append(f'<circle class="dot arm{i % COLOURS}" cx="{x(price)}" cy="{y(outcome)}" r="5">{told}</circle>')
        parts.append(text(x(price) + 9, levels[arm] + 4, arm, "start", f"arm{i % COLOURS}"))
    return svg(WIDTH, height, parts)


def forest(rows: Sequence[tuple[str, Mapping[str, Any]]], *, rates: bool = False) -> Markup:
    """A difference per row with its 95 % interval, and thinner the corrected one; a line stands at no difference."""
    ends = [0.0]
    for _, row in rows:
        ends += [row["mean"], *(row["interval"] or ()), *(row["corrected"] or ())]
    low, high, ticks = axis_of(min(ends), max(ends))
    marks = _marks(ticks, rates)
    line, top = 34, 8
    gutter = min(430.0, 20 + max(width_of(name) for name, _ in rows))
    height = top + line * len(rows) + 26
    x = Scale(low, high, gutter, WIDTH - 24)
    parts = []
    for tick, mark in zip(ticks, marks, strict=True):
        parts.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{top}" y2="{height - 24}"/>')
        parts.append(text(x(tick), height - 8, mark, "middle"))
    parts.append(f'<line class="zero" x1="{x(0.0)}" x2="{x(0.0)}" y1="{top}" y2="{height - 24}"/>')
    for i, (name, row) in enumerate(rows):
        level = top + line * (i + 0.5)
        parts.append(text(gutter - 14, level + 4, name, "end", "name"))
        if row["corrected"]:
            parts.append(bar(x(row["corrected"][0]), level, x(row["corrected"][1]), level, "after thin"))
        if row["interval"]:
            parts.append(bar(x(row["interval"][0]), level, x(row["interval"][1]), level, "after"))
        parts.append(f'<circle class="after dot" cx="{x(row["mean"])}" cy="{level}" r="4.5"/>')
    return svg(WIDTH, height, parts)


def _marks(ticks: Sequence[float], rates: bool) -> list[str]:
    return [percent(tick) for tick in ticks] if rates else written(ticks)


def _across(ticks: Sequence[float], marks: Sequence[str], y: Scale, left: float, right: float) -> list[str]:
    parts = []
    for tick, mark in zip(ticks, marks, strict=True):
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(text(left - 8, y(tick) + 3.5, mark, "end"))
    return parts


def _colour(i: int) -> str:
    return f"arm{i % COLOURS}" + (" second" if i >= COLOURS else "")


def _apart(levels: Mapping[str, float], gap: float, top: float, bottom: float) -> dict[str, float]:
    """Heights of labels, moved down until they do not cover each other, and up again where the page ends."""
    found: dict[str, float] = {}
    last = top - gap
    for arm, level in sorted(levels.items(), key=lambda item: item[1]):
        last = found[arm] = max(level, last + gap)
    over = max(0.0, last - bottom)
    return {arm: level - over for arm, level in found.items()}
