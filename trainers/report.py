"""report.html: what a run did, for people. One file that needs nothing from outside.

Whatever the run folder lacks is named in a line of the report; nothing that is absent makes it fail.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .charts import before_after, curve
from .comparison import Audit, Comparison, Row, audit, compare, outcome_interval
from .run_folder import RunFolder
from .statistics import Interval, mean_of_intervals

MEDIA = {".mp4": "video/mp4", ".webm": "video/webm", ".webp": "image/webp", ".gif": "image/gif", ".png": "image/png"}
MAX_EMBEDDED = 64 * 2**20
"""Bytes of videos and images that go into the page; the rest is named by path."""
MAX_CURVES = 24
"""Curves drawn per group of metrics."""
GROUP_ORDER = ("reward", "success", "score", "objective", "advantage", "curriculum")

Json = Mapping[str, Any]


def write_report(folder: RunFolder) -> Path:
    """Write report.html into the run folder and return its path."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    path = folder.path / "report.html"
    path.write_text(environment.get_template("report.html").render(_content(folder)))
    return path


def _content(folder: RunFolder) -> dict[str, Any]:
    evaluations, decisions, alarms = folder.evaluations(), folder.read("gate"), folder.read("alarms")
    before, after = evaluations.get("before"), evaluations.get("after")
    found = compare(before, after) if before and after else None
    audits = audit(before, after) if before and after else []
    facts = folder.read_json("config")
    show = Numbers(found is None or found.rates)
    unit = (after or {}).get("unit", "success")
    return {
        "facts": {"label_account": None} | facts,
        "created": facts["created"].replace("T", " ").replace("+00:00", " UTC"),
        "name": folder.path.resolve().name,
        "unit": unit,
        "summary": _summary(folder, found, decisions, audits, unit),
        "rows": [_table_row(row, show) for row in (*found.rows, found.mean)] if found else [],
        "chart": before_after([*found.rows, found.mean], found.rates) if found else None,
        "missing_evaluation": _missing_evaluation(evaluations),
        "unpaired": found is not None and found.mean.difference_interval is None,
        "notes": list(dict.fromkeys(note for each in evaluations.values() for note in each.get("notes", ()))),
        "curves": _evaluation_curves(evaluations, unit) + _metric_curves(folder.metrics()),
        "videos": _samples(folder, "videos"),
        "images": _samples(folder, "images"),
        "decisions": _decisions(decisions, evaluations),
        "agreement": _agreement(decisions, found, show),
        "audits": [_audit_row(each, show) for each in audits],
        "alarms": alarms,
        "config": {key: json.dumps(value) for key, value in folder.config.items()},
        "files": _files(folder),
    }


@dataclass(frozen=True)
class Numbers:
    """How the report writes outcomes: rates in percent, other outcomes as they are."""

    rates: bool

    def value(self, x: float, sign: str = "") -> str:
        if not math.isfinite(x):
            return "n/a"
        return f"{100 * x:{sign}.1f}" if self.rates else f"{x:{sign}.3g}"

    def interval(self, interval: Interval | None, sign: str = "") -> str:
        if interval is None or not all(map(math.isfinite, interval)):
            return ""
        low, high = (f"{100 * limit:{sign}.0f}" if self.rates else f"{limit:{sign}.3g}" for limit in interval)
        return f"{low} to {high}"

    def with_unit(self, x: float) -> str:
        return f"{self.value(x)}\u00a0%" if self.rates else self.value(x)

    def change(self, x: float) -> str:
        return f"{self.value(x, '+')} points" if self.rates else self.value(x, "+")


def _summary(
    folder: RunFolder, found: Comparison | None, decisions: Sequence[Json], audits: Sequence[Audit], unit: str
) -> str:
    """The report's first paragraph."""
    iterations = max((record["iteration"] for record in folder.metrics()), default=0)
    words = [f"The run made {iterations} iterations of {folder.recipe}."]
    if found:
        words += _summary_of_outcomes(found, unit)
    if decisions:
        kept = sum(record["decision"] == "keep" for record in decisions)
        others = {"repair": "asked for repair", "rollback": "rolled back"}
        counts = {name: sum(record["decision"] == name for record in decisions) for name in others}
        rest = [f"{others[name]} {_times(count)}" for name, count in counts.items() if count]
        words.append(
            f"The gate kept {kept} of {_count(len(decisions), 'update')}" + "".join(f", {r}" for r in rest) + "."
        )
    elif found:
        words.append("No gate watched over this run.")
    doubts = [each.sentence for each in audits if each.doubtful]
    if doubts:
        words.append(f"The audit found that {'; '.join(doubts)}.")
    return " ".join(words)


def _summary_of_outcomes(found: Comparison, unit: str) -> list[str]:
    show, mean = Numbers(found.rates), found.mean
    verb = "rose" if mean.difference > 0 else "fell" if mean.difference < 0 else "stayed"
    words = f"Mean {unit} over {_count(len(found.rows), 'category', 'categories')} {verb} from "
    words += f"{show.with_unit(mean.before)} to {show.with_unit(mean.after)} ({show.change(mean.difference)}"
    if mean.difference_interval:
        words += f", 95 % interval {show.interval(mean.difference_interval, '+')}"
    sentences = [words + ")."]
    if all(row.p is None for row in found.rows):
        return sentences
    better, worse = [row.category for row in found.rows if row.rose], [row.category for row in found.rows if row.fell]
    sentences.append(f"Significantly better: {_listed(better)}. Significantly worse: {_listed(worse)}.")
    return sentences


def _table_row(row: Row, show: Numbers) -> dict[str, Any]:
    same = row.episodes[0] == row.episodes[1]
    return {
        "category": row.category,
        "episodes": str(row.episodes[0]) if same else f"{row.episodes[0]} / {row.episodes[1]}",
        "before": show.value(row.before),
        "before_interval": show.interval(row.before_interval),
        "after": show.value(row.after),
        "after_interval": show.interval(row.after_interval),
        "difference": show.value(row.difference, "+"),
        "difference_interval": show.interval(row.difference_interval, "+"),
        "p": _p(row.p),
        "verdict": "rose" if row.rose else "fell" if row.fell else "",
    }


def _missing_evaluation(evaluations: Json) -> str:
    absent = [name for name in ("before", "after") if name not in evaluations]
    if absent:
        return f"Nothing to compare: {_listed([f'evaluations/{name}.json' for name in absent])} not written yet."
    return "Nothing to compare: the evaluations before and after share no category."


def _evaluation_curves(evaluations: Mapping[str, Json], unit: str) -> list[dict[str, Any]]:
    """Outcomes over iterations with 95 % intervals, once there are more evaluations than before and after."""
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
        overall = (each["iteration"], sum(means) / len(means), mean_of_intervals(means, intervals))
        points.setdefault("mean", []).append(overall)
    rates = all(
        set(outcome["success"]) <= {0, 1} for each in evaluations.values() for outcome in each["outcomes"].values()
    )
    names = ["mean", *(name for name in points if name != "mean")]
    charts = [
        (name, curve([p[:2] for p in points[name]], intervals=[p[2] for p in points[name]], rates=rates))
        for name in names
    ]
    return [{"title": f"{unit} at the evaluations, with 95 % intervals", "charts": charts, "omitted": 0}]


def _metric_curves(metrics: Sequence[Json]) -> list[dict[str, Any]]:
    """Small multiples of every metric, grouped by the prefix of its name; small groups share a row at the end."""
    groups: dict[str, list[str]] = {"reward": []}
    for name in dict.fromkeys(name for record in metrics for name in record if name != "iteration"):
        groups.setdefault(name.split("/")[0] if "/" in name else "reward", []).append(name)
    small = [group for group, names in groups.items() if group != "reward" and len(names) < 3]
    further = [
        name for group in sorted(small, key=lambda group: (group == "time", group)) for name in groups.pop(group)
    ]
    rank = {group: i for i, group in enumerate(GROUP_ORDER)}
    found = []
    for group in sorted(groups, key=lambda group: (group == "time", rank.get(group, len(rank)))):
        names = sorted(groups[group], key=lambda name: (name != "reward", not name.startswith("reward"), name))
        found.append(_group(group, names, f"{group}/", metrics))
    found.append(_group("further metrics", further, "", metrics))
    return [group for group in found if group["charts"]]


def _group(title: str, names: Sequence[str], prefix: str, metrics: Sequence[Json]) -> dict[str, Any]:
    charts = []
    for name in names[:MAX_CURVES]:
        points = [(record["iteration"], record.get(name, math.nan)) for record in metrics]
        charts.append((name.removeprefix(prefix), curve(points)))
    return {"title": title, "charts": charts, "omitted": len(names) - len(charts)}


def _samples(folder: RunFolder, kind: str) -> dict[str, Any]:
    """The media of samples/KIND, before and after side by side, and why there are none if missing.txt says so."""
    place = folder.path / "samples" / kind
    paths = sorted(path for path in place.glob("*") if path.suffix in MEDIA) if place.is_dir() else []
    pairs: dict[str, dict[str, Any]] = {}
    left, skipped = MAX_EMBEDDED, []
    for path in paths:
        left -= path.stat().st_size
        if left < 0:
            skipped.append(str(path.relative_to(folder.path)))
            continue
        stem, _, side = path.stem.replace("_", "-").rpartition("-")
        name, side = (stem, side) if stem and side in ("before", "after") else (path.stem, "")
        pairs.setdefault(name, {})[side] = _media(path)
    ordered = [(name, sorted(sides.items(), key=lambda s: s[0] != "before")) for name, sides in pairs.items()]
    why = place / "missing.txt"
    return {"pairs": ordered, "skipped": skipped, "missing": why.read_text().strip() if why.exists() else ""}


def _media(path: Path) -> Markup:
    kind = MEDIA[path.suffix]
    source = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    if kind.startswith("video"):
        return Markup('<video src="{}" controls loop muted playsinline autoplay></video>').format(source)
    return Markup('<img src="{}" alt="{}">').format(source, path.stem)


def _decisions(decisions: Sequence[Json], evaluations: Mapping[str, Json]) -> list[dict[str, Any]]:
    """The gate's decisions, each with the mean outcome that an evaluation found before the next one."""
    found = []
    ends = [record["iteration"] for record in decisions[1:]] + [math.inf]
    for record, end in zip(decisions, ends, strict=False):
        measured = [
            each
            for name, each in evaluations.items()
            if name != "before" and record["iteration"] <= each["iteration"] and (each["iteration"] < end)
        ]
        found.append(
            {
                "iteration": record["iteration"],
                "decision": record["decision"],
                "reason": record.get("reason", ""),
                "oracle": _mean_outcome(measured[0]) if measured else "",
            }
        )
    return found


def _agreement(decisions: Sequence[Json], found: Comparison | None, show: Numbers) -> list[dict[str, str]]:
    """Per category: what the judge saw last, how often it was held back, and what the oracle says in the end."""
    last = decisions[-1].get("evidence", {}) if decisions else {}
    rows = {row.category: row for row in found.rows} if found else {}
    table = []
    for category, seen in last.items():
        if not isinstance(seen, Mapping):
            continue
        held = sum(category in record.get("harmed", ()) for record in decisions)
        row = rows.get(category)
        table.append(
            {
                "category": category,
                "base": _number(seen.get("base")),
                "candidate": _number(seen.get("candidate")),
                "upper": _number(seen.get("upper"), "+"),
                "held": _times(held) if held else "never",
                "oracle": show.change(row.difference) if row else "not evaluated",
                "words": _agreement_words(row, held),
            }
        )
    return table


def _agreement_words(row: Row | None, held: int) -> str:
    if row is None:
        return ""
    if row.fell:
        return "no: it fell significantly, the gate missed it"
    if row.p is None:
        return "no paired test"
    return "no significant fall in the end" if held else "yes: no significant fall"


def _audit_row(each: Audit, show: Numbers) -> dict[str, str]:
    return {
        "category": each.category,
        "auc": "n/a" if math.isnan(each.auc) else f"{each.auc:.2f}",
        "counts": f"{each.successes} / {each.failures}",
        "reward_change": f"{each.reward_change:+.3g}",
        "success_change": show.change(each.success_change),
        "finding": each.finding,
    }


def _mean_outcome(evaluation: Json) -> str:
    outcomes = [outcome["success"] for outcome in evaluation["outcomes"].values()]
    mean = sum(sum(values) / len(values) for values in outcomes) / len(outcomes)
    return Numbers(all(set(values) <= {0, 1} for values in outcomes)).with_unit(mean)


def _files(folder: RunFolder) -> list[tuple[str, str]]:
    """Entries of the run folder with their sizes, folders summed up."""
    found = []
    for path in sorted(folder.path.iterdir()):
        if path.name.startswith(".") or path.name == "report.html":
            continue
        size = (
            sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
            if path.is_dir()
            else path.stat().st_size
        )
        found.append((path.name + ("/" if path.is_dir() else ""), _bytes(size)))
    return found


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _number(value: Any, sign: str = "") -> str:
    return f"{value:{sign}.3g}" if isinstance(value, int | float) else "n/a"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return names[0] if names else "none"
    return f"{', '.join(names[:-1])} and {names[-1]}"
