"""Small charts as SVG text. Colours come from the page's CSS, so they follow light and dark mode."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from ...numbers import Interval, unsigned
from .comparison import Row

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """A linear map from data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def curve(
    points: Points, intervals: Sequence[Interval] | None = None, rates: bool = False, axis: str = "iteration"
) -> Markup:
    """A line with its last value written at its end; a NaN breaks the line.

    Args:
        points: (place on the axis, value).
        intervals: one per point, drawn as bars.
        rates: values are rates, shown in percent on an axis from 0 to 100.
        axis: the name of the horizontal axis.
    """
    shown = [y for _, y in points if math.isfinite(y)]
    shown += [limit for pair in intervals or () for limit in pair if math.isfinite(limit)]
    if not shown:
        return Markup('<p class="missing">no finite value</p>')
    low, high, ticks = (-0.04, 1.04, [0, 0.5, 1]) if rates else axis_of(min(shown), max(shown))
    marks = [percent(tick) for tick in ticks] if rates else written(ticks)
    last = next((a, b) for a, b in reversed(points) if math.isfinite(b))
    ending = percent(last[1]) if rates else short(last[1], _digits(ticks))
    width, height, top, bottom = 300, 132, 10, 20
    left, right = 14 + width_of(max(marks, key=len, default="")), 14 + width_of(ending)
    xs = [x for x, _ in points]
    x = Scale(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, left, width - right)
    y = Scale(low, high, height - bottom, top)
    parts = []
    for tick, mark in zip(ticks, marks, strict=True):
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(text(left - 6, y(tick) + 3.5, mark, "end"))
    parts.append(text(left, height - 5, place(min(xs)), "start"))
    parts.append(text((left + width - right) / 2, height - 5, axis, "middle"))
    if max(xs) > min(xs):
        parts.append(text(width - right, height - 5, place(max(xs)), "end"))
    for (at, value), pair in zip(points, intervals or (), strict=False):
        if math.isfinite(value):
            parts.append(bar(x(at), y(pair[0]), x(at), y(pair[1]), "after"))
    parts.append(f'<path class="line" d="{path_of(points, x, y)}"/>')
    if len(points) <= 40:
        parts += [f'<circle class="mark" cx="{x(a)}" cy="{y(b)}" r="2.2"/>' for a, b in points if math.isfinite(b)]
    parts.append(text(x(last[0]) + 6, y(last[1]) + 3.5, ending, "start", "value"))
    return svg(width, height, parts)


def trade_off(points: Sequence[tuple[int, float, float]], across: str, up: str, narrow: bool = False) -> Markup | None:
    """One figure against another over time: a line through a dot per iteration, hollow at the start, filled at the end.

    Args:
        points: (iteration, value across, value up) in time order; those with a value that is not finite are left out.
        across, up: the names of the axes.
        narrow: for a page as wide as a telephone.

    Returns:
        None with fewer than two points.
    """
    points = [point for point in points if all(map(math.isfinite, point))]
    if len(points) < 2:
        return None
    width, height, right, top, bottom = (350 if narrow else 860), 330, 40, 34, 46
    x_low, x_high, x_ticks = axis_of(min(p[1] for p in points), max(p[1] for p in points))
    y_low, y_high, y_ticks = axis_of(min(p[2] for p in points), max(p[2] for p in points))
    x_marks, y_marks = written(x_ticks), written(y_ticks)
    left = 20 + width_of(max(y_marks, key=len))
    x, y = Scale(x_low, x_high, left, width - right), Scale(y_low, y_high, height - bottom, top)
    parts = []
    for tick, mark in zip(y_ticks, y_marks, strict=True):
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(text(left - 8, y(tick) + 3.5, mark, "end"))
    for tick, mark in zip(x_ticks, x_marks, strict=True):
        parts.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(text(x(tick), height - bottom + 17, mark, "middle"))
    parts.append(text(width / 2, height - 8, across, "middle", "axis"))
    parts.append(text(left, top - 18, up, "start", "axis"))
    parts.append(f'<path class="line faint" d="{path_of([p[1:] for p in points], x, y)}"/>')
    last = len(points) - 1
    for i, (iteration, a, b) in sorted(enumerate(points), key=lambda point: point[0] in (0, last)):
        kind, radius = ("before dot", 5) if i == 0 else ("after dot", 5) if i == last else ("mark", 2.6)
        told = f"<title>{escape(f'iteration {iteration}: {across} {short(a)}, {up} {short(b)}')}</title>"
        parts.append(f'<circle class="{kind}" cx="{x(a)}" cy="{y(b)}" r="{radius}">{told}</circle>')
    for end, (iteration, a, b), lift in (("start", points[0], -8), ("end", points[-1], 16)):
        anchor, shift = ("start", 9) if x(a) < width / 2 else ("end", -9)
        parts.append(text(x(a) + shift, y(b) + lift, f"{end}, iteration {iteration}", anchor, "value"))
    return svg(width, height, parts)


def before_after(
    rows: Sequence[Row], rates: bool, controls: Mapping[str, float] | None = None, narrow: bool = False
) -> Markup:
    """Per category two dots with 95 % bars: hollow before, filled after; a stroke for a control.

    Args:
        controls: category -> what the outcome is to be held against.
        narrow: for a page as wide as a telephone: names stand above their lines.
    """
    gutter, line, width, top = (14, 56, 350, 4) if narrow else (190, 40, 860, 8)
    height = top + line * len(rows) + 26
    held = {name: value for name, value in (controls or {}).items() if math.isfinite(value)}
    limits = [limit for row in rows for pair in (row.before_interval, row.after_interval) for limit in pair]
    finite = [limit for limit in limits if math.isfinite(limit)] + [
        mean for row in rows for mean in (row.before, row.after)
    ]
    finite += held.values()
    low, high, ticks = (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]) if rates else axis_of(min(finite), max(finite))
    marks = [percent(tick) for tick in ticks] if rates else written(ticks)
    x = Scale(low, high, gutter, width - (20 if narrow else 24))
    parts = []
    for tick, mark in zip(ticks, marks, strict=True):
        parts.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{top}" y2="{height - 24}"/>')
        parts.append(text(x(tick), height - 8, mark, "middle"))
    for i, row in enumerate(rows):
        middle = top + line * (i + 0.5) + (8 if narrow else 0)
        name = "name strong" if row.category == "mean" else "name"
        at, anchor, height_of_name = (2, "start", middle - 16) if narrow else (gutter - 14, "end", middle + 4)
        parts.append(text(at, height_of_name, _shortened(row.category, 44 if narrow else 24), anchor, name))
        if row.category in held:
            place = x(held[row.category])
            parts.append(f'<line class="control" x1="{place}" x2="{place}" y1="{middle - 12}" y2="{middle + 12}"/>')
        sides = (("before", row.before, row.before_interval, -6), ("after", row.after, row.after_interval, 6))
        for kind, mean, interval, shift in sides:
            level = middle + shift
            if all(map(math.isfinite, interval)):
                parts.append(bar(x(max(low, interval[0])), level, x(min(high, interval[1])), level, kind))
            parts.append(f'<circle class="{kind} dot" cx="{x(mean)}" cy="{level}" r="4.5"/>')
    return svg(width, height, parts)


def axis_of(low: float, high: float) -> tuple[float, float, list[float]]:
    """Limits around the data and two or three round ticks inside them."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - max(abs(low) * 0.1, 0.5), high + max(abs(high) * 0.1, 0.5)
    most = sys.float_info.max / 16  # so that a difference of two limits is still a number
    low, high = max(-most, low), min(most, high)
    raw = (high - low) / 2
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * max(factor for factor in (1, 2, 5) if factor * power <= raw * 1.0001)
    first = math.ceil(low / step - 1e-9)
    ticks = [round(step * i, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
    space = 0.06 * (high - low)
    return low - space, high + space, ticks


def path_of(points: Points, x: Scale, y: Scale) -> str:
    commands, pen = [], "M"
    for at, value in points:
        if math.isfinite(value):
            commands.append(f"{pen}{x(at)} {y(value)}")
        pen = "L" if math.isfinite(value) else "M"
    return " ".join(commands)


def percent(value: float) -> str:
    return f"{100 * value:.1f}".removesuffix(".0") + " %"


def place(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"


def short(value: float, digits: int = 3) -> str:
    if 1e3 <= abs(value) < 1e6 and digits <= 6:
        return f"{value:,.0f}"
    return unsigned(f"{value:.{digits}g}".replace("e+0", "e").replace("e-0", "e-"))


def _digits(ticks: Sequence[float]) -> int:
    """How many significant digits tell ticks apart, 3 at least."""
    return next((n for n in range(3, 16) if len({short(tick, n) for tick in ticks}) == len(ticks)), 16)


def written(ticks: Sequence[float]) -> list[str]:
    return [short(tick, _digits(ticks)) for tick in ticks]


def width_of(text: str) -> float:
    """Pixels of a label of 11 px, rather too many than too few."""
    return 6.4 * len(text)


def _shortened(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most // 2]}…{name[len(name) - most // 2 + 1 :]}"


def bar(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind} bar" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def svg(width: float, height: float, parts: Sequence[str]) -> Markup:
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>')
