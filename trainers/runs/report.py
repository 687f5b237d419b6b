"""report.html: what a run did, for people. One file that needs nothing from outside.

Whatever the run folder lacks is named in a line of the report; nothing that is absent makes it fail.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from ...numbers import Interval, Outcomes, figure, p_value
from ...statistics import mean_of_intervals
from .charts import before_after, curve, trade_off
from .comparison import Audit, Comparison, Row, audit, compare, outcome_interval
from .evaluations import Figures, figures_of, known
from .run_folder import RunFolder

MEDIA = {".mp4": "video/mp4", ".webm": "video/webm", ".webp": "image/webp", ".gif": "image/gif", ".png": "image/png"}
MAX_EMBEDDED = 64 * 2**20
"""Bytes of videos and images that go into the page; the rest is named by path."""
MAX_CURVES = 24
"""Curves drawn per group of metrics."""
GROUP_ORDER = ("reward", "success", "score", "objective", "advantage", "curriculum")
QUERIES = "queries"
"""The metric that counts reward queries so far."""
REWARDS = ("reward", "category")
"""Groups of metrics that are rewards, drawn over reward queries where these are counted."""
DRIFTS = [f"{kind}_{start}" for kind in ("kl", "log_ratio") for start in ("start", "reference", "initial", "base")]
"""Last parts of the names of metrics that say how far a policy went, the first choice first."""
SMALL = 128
"""Pixels: pictures less high than this are enlarged without smoothing."""
DECISIONS = {
    "keep": "kept",
    "wait": "waited",
    "repair": "asked for repair",
    "rollback": "rolled back",
}
MEANINGS = {
    "keep": "the update was promoted",
    "wait": "not better than the best so far, so nothing was promoted and nothing undone",
    "repair": "undone, and the learners were asked to repair it",
    "rollback": "undone",
}

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
    evaluations = {name: known(each) for name, each in folder.evaluations().items()}
    decisions, metrics = folder.read("gate"), folder.metrics()
    before, after = evaluations.get("before"), evaluations.get("after")
    found = compare(before, after) if before and after else None
    audits = audit(before, after) if before and after else []
    facts = folder.read_json("config")
    show = Outcomes(found is None or found.rates)
    figures = figures_of(before, after)
    unit = (after or before or {}).get("unit", "success")
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
        "rates": found is not None and found.rates,
        "notes": list(dict.fromkeys(note for each in evaluations.values() for note in each["notes"])),
        "figures": figures and _figure_rows(figures),
        "curves": _evaluation_curves(evaluations, unit) + _metric_curves(metrics),
        "trade_off": _trade_off(metrics),
        "videos": _samples(folder, "videos"),
        "images": _samples(folder, "images"),
        "answers": _answers(folder),
        "decisions": _decisions(decisions, evaluations),
        "meanings": {name: words for name, words in MEANINGS.items() if any(r["decision"] == name for r in decisions)},
        "agreement": _agreement(decisions, found, show),
        "audits": [_audit_row(each, show) for each in audits],
        "alarms": folder.read("alarms"),
        "config": {key: json.dumps(value) for key, value in folder.config.items()},
        "files": _files(folder),
    }


def _summary(
    folder: RunFolder, found: Comparison | None, decisions: Sequence[Json], audits: Sequence[Audit], unit: str
) -> str:
    """The report's first paragraph."""
    metrics = folder.metrics()
    iterations = max((record["iteration"] for record in metrics), default=0)
    queries = _queries(metrics)
    cost = f" and {queries[-1]:,.0f} reward queries" if queries else ""
    words = [f"The run made {iterations} iterations of {folder.recipe}{cost}."]
    if found:
        words += _summary_of_outcomes(found, unit)
    if decisions:
        words += _summary_of_decisions(decisions)
    elif found:
        words.append("No gate watched over this run.")
    doubts = [each.sentence for each in audits if each.doubtful]
    if doubts:
        words.append(f"The audit found that {'; '.join(doubts)}.")
    return " ".join(words)


def _summary_of_decisions(decisions: Sequence[Json]) -> list[str]:
    made = [record["decision"] for record in decisions]
    words = f"The gate kept {made.count('keep')} of {_count(len(made), 'update')}"
    others = [name for name in dict.fromkeys((*DECISIONS, *made)) if name != "keep" and name in made]
    words += "".join(f", {DECISIONS.get(name, name)} {_times(made.count(name))}" for name in others)
    stops = [f"It stopped the run at iteration {record['iteration']}." for record in decisions if record.get("stop")]
    return [words + ".", *stops]


def _summary_of_outcomes(found: Comparison, unit: str) -> list[str]:
    show, mean = Outcomes(found.rates), found.mean
    verb = "rose" if mean.difference > 0 else "fell" if mean.difference < 0 else "stayed"
    words = f"Mean {_spoken(unit)} over {_count(len(found.rows), 'category', 'categories')} {verb} from "
    words += f"{show.with_unit(mean.before)} to {show.with_unit(mean.after)} ({show.change(mean.difference)}"
    if mean.difference_interval:
        words += f", 95\u00a0% interval {show.interval(mean.difference_interval, '+')}"
    sentences = [words + ")."]
    if all(row.p is None for row in found.rows):
        return sentences
    better, worse = [row.category for row in found.rows if row.rose], [row.category for row in found.rows if row.fell]
    sentences.append(f"Significantly better: {_listed(better)}. Significantly worse: {_listed(worse)}.")
    return sentences


def _table_row(row: Row, show: Outcomes) -> dict[str, Any]:
    same = row.episodes[0] == row.episodes[1]
    return {
        "category": row.category,
        "attempts": str(row.episodes[0]) if same else f"{row.episodes[0]} / {row.episodes[1]}",
        "before": show.value(row.before),
        "before_interval": show.interval(row.before_interval),
        "after": show.value(row.after),
        "after_interval": show.interval(row.after_interval),
        "difference": show.value(row.difference, "+"),
        "difference_interval": show.interval(row.difference_interval, "+"),
        "p": p_value(row.p),
        "verdict": "rose" if row.rose else "fell" if row.fell else "",
    }


def _figure_rows(figures: Figures) -> dict[str, Any]:
    rows = [(name, [figure(value, digits=4) for pair in pairs for value in pair]) for name, pairs in figures.rows]
    return {"categories": figures.categories, "rows": rows}


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
        if not means:
            continue
        overall = (each["iteration"], sum(means) / len(means), mean_of_intervals(means, intervals))
        points.setdefault("mean", []).append(overall)
    rates = all(
        set(outcome["success"]) <= {0, 1} for each in evaluations.values() for outcome in each["outcomes"].values()
    )
    if not points:
        return []
    names = ["mean", *(name for name in points if name != "mean")]
    charts = [
        (name, curve([p[:2] for p in points[name]], intervals=[p[2] for p in points[name]], rates=rates))
        for name in names
    ]
    return [{"title": f"{_spoken(unit)} at the evaluations, with 95 % intervals", "charts": charts, "omitted": 0}]


def _metric_curves(metrics: Sequence[Json]) -> list[dict[str, Any]]:
    """Small multiples of every metric, grouped by the prefix of its name; small groups share a row at the end."""
    groups: dict[str, list[str]] = {"reward": []}
    for name in dict.fromkeys(name for record in metrics for name in record if name != "iteration"):
        groups.setdefault(_group_of(name), []).append(name)
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
    charts, queries = [], _queries(metrics)
    for name in names[:MAX_CURVES]:
        points = [(record["iteration"], record.get(name, math.nan)) for record in metrics]
        if queries and _group_of(name) in REWARDS:
            points = [(spent, value) for spent, (_, value) in zip(queries, points, strict=True)]
            charts.append((name.removeprefix(prefix), curve(points, axis="reward queries")))
        else:
            charts.append((name.removeprefix(prefix), curve(points)))
    return {"title": title, "charts": charts, "omitted": len(names) - len(charts)}


def _group_of(metric: str) -> str:
    return metric.partition("/")[0]


def _queries(metrics: Sequence[Json]) -> list[float]:
    """Reward queries so far at every iteration; empty unless every iteration counts them and they never fall."""
    found = [record.get(QUERIES, math.nan) for record in metrics]
    grows = all(map(math.isfinite, found)) and found == sorted(found)
    return found if grows else []


def _trade_off(metrics: Sequence[Json]) -> dict[str, Any] | None:
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
                return {"chart": chart, "estimate": drift.startswith("log_ratio")}
    return None


def _samples(folder: RunFolder, kind: str) -> dict[str, Any]:
    """The media of samples/KIND, before and after side by side, and why there are none if missing.txt says so.

    Where NAME.txt stands beside NAME-before and NAME-after they are sheets, with a prompt per line of the text and
    per row of the picture.
    """
    place = folder.path / "samples" / kind
    paths = sorted(place.glob("*")) if place.is_dir() else []
    prompts = {_name_and_side(path)[0]: _lines(path) for path in paths if path.suffix == ".txt"}
    missing = prompts.pop("missing", [])
    pairs: dict[str, dict[str, Any]] = {}
    left, skipped = MAX_EMBEDDED, []
    for path in (path for path in paths if path.suffix in MEDIA):
        left -= path.stat().st_size
        if left < 0:
            skipped.append(str(path.relative_to(folder.path)))
            continue
        name, side = _name_and_side(path)
        pairs.setdefault(name, {})[side] = _media(path, rows=max(1, len(prompts.get(name, ()))))
    ordered = [(name, sorted(sides.items(), key=lambda s: s[0] != "before")) for name, sides in pairs.items()]
    return {
        "sheets": [(name, sides, prompts[name]) for name, sides in ordered if name in prompts],
        "pairs": [(name, sides) for name, sides in ordered if name not in prompts],
        "skipped": skipped,
        "missing": " ".join(missing),
    }


def _answers(folder: RunFolder) -> list[dict[str, Any]]:
    """The rows of samples/answers/answers.json, pictures embedded."""
    place = folder.path / "samples" / "answers"
    file = place / "answers.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    for row in rows:
        picture = place / str(row.get("picture", ""))
        row["media"] = _media(picture, rows=1) if picture.is_file() else None
    return rows


def _name_and_side(path: Path) -> tuple[str, str]:
    """("cup", "before") of cup-before.png or cup_before.png; a file without a side keeps its whole name."""
    stem, _, side = path.stem.replace("_", "-").rpartition("-")
    return (stem, side) if stem and side in ("before", "after") else (path.stem.replace("_", "-"), "")


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").strip().splitlines()


def _media(path: Path, rows: int) -> Markup:
    """The file as an element of the page; ``rows`` tells the height of one picture on a sheet."""
    kind = MEDIA[path.suffix]
    source = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    if kind.startswith("video"):
        return Markup('<video src="{}" controls loop muted playsinline autoplay></video>').format(source)
    try:
        with Image.open(path) as picture:
            small = picture.height / rows < SMALL
    except (UnidentifiedImageError, OSError):
        small = False
    marked = Markup(' class="pixels"') if small else ""
    return Markup('<img src="{}" alt="{}"{}>').format(source, path.stem, marked)


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
                "stop": bool(record.get("stop")),
                "outcome": _mean_outcome(measured[0]) if measured else "",
            }
        )
    return found


def _agreement(decisions: Sequence[Json], found: Comparison | None, show: Outcomes) -> list[dict[str, str]]:
    """Per category: what the gate saw last, how often it was held back, and what the evaluation says in the end.

    A gate whose categories are not those of the evaluation is held against the mean of the evaluation's.
    """
    last = decisions[-1].get("evidence", {}) if decisions else {}
    rows = {row.category: row for row in found.rows} if found else {}
    table = []
    for category, seen in last.items():
        if not isinstance(seen, Mapping):
            continue
        held = sum(category in record.get("harmed", ()) for record in decisions)
        row = rows.get(category, None if found is None or rows.keys() & last.keys() else found.mean)
        outcome = "not evaluated" if row is None else show.change(row.difference)
        table.append(
            {
                "category": category,
                "base": figure(seen.get("base")),
                "candidate": figure(seen.get("candidate")),
                "upper": figure(seen.get("upper"), "+"),
                "held": _times(held) if held else "never",
                "outcome": f"{outcome} (mean)" if row is not None and row.category != category else outcome,
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


def _audit_row(each: Audit, show: Outcomes) -> dict[str, str]:
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
    if not outcomes:
        return ""
    mean = sum(sum(values) / len(values) for values in outcomes) / len(outcomes)
    return Outcomes(all(set(values) <= {0, 1} for values in outcomes)).with_unit(mean)


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


def _spoken(unit: str) -> str:
    """The unit of an outcome within a sentence: a judge is not what is measured but who measures."""
    return "outcome by the judge" if unit == "judge" else unit


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return names[0] if names else "none"
    return f"{', '.join(names[:-1])} and {names[-1]}"
