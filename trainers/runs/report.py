"""report.html: what a run did, for people. One file that needs nothing from outside.

Whatever the run folder lacks is named in a line of the report; nothing that is absent makes it fail.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ...numbers import Outcomes, figure, p_value
from ...untrusted import whole
from .charts import before_after
from .comparison import Audit, Comparison, Row, audit, compare, outcome_interval
from .curves import along_training, evaluation_curves, metric_curves, queries_of, trade_off_of
from .evaluations import Figures, controls_of, figures_of, known
from .media import answers_of, samples_of
from .run_folder import RunFolder

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
    path = folder.path / "report.html"
    path.write_text(whole(pages().get_template("report.html").render(_content(folder))))
    return path


def pages() -> Environment:
    """The templates of pages; what is put into them is escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def in_short(folder: RunFolder) -> Markup:
    """What a run reached, as HTML for a notebook: a sentence, a row per category, and where the report is."""
    evaluations = {name: known(each) for name, each in folder.evaluations().items()}
    before, after = evaluations.get("before"), evaluations.get("after")
    found = compare(before, after) if before and after else None
    unit = (after or before or {}).get("unit", "success")
    done = max((record["iteration"] for record in folder.metrics()), default=0)
    if found is None:
        words = f"{_count(done, 'iteration')} done" if done else "not begun"
        return Markup("<p><b>{}</b>: {}, in {}</p>").format(folder.recipe, words, folder.path)
    show = Outcomes(found.rates)
    rows = [_table_row(row, show) for row in (*found.rows, *([found.mean] if len(found.rows) > 1 else []))]
    names = (
        "category",
        "before",
        "before_interval",
        "after",
        "after_interval",
        "difference",
        "difference_interval",
        "p",
    )
    cells = Markup(
        "<tr><td>{}</td><td>{} <small>{}</small></td><td>{} <small>{}</small></td><td>{} <small>{}</small></td>"
    )
    body = [(cells + Markup("<td>{}</td></tr>")).format(*(row[name] for name in names)) for row in rows]
    heads = Markup("<tr><th>{}</th><th>before</th><th>after</th><th>change</th><th>p</th></tr>").format(unit)
    told = " ".join([*_fallen(found), *_summary_of_outcomes(found, unit)])
    report = Markup("<p><a href={0}>{0}</a></p>").format(str(folder.path / "report.html"))
    return Markup("<p>{}</p><table>{}{}</table>{}").format(told, heads, Markup("").join(body), report)


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
    videos, images, answers = samples_of(folder, "videos"), samples_of(folder, "images"), answers_of(folder)
    return {
        "facts": {"label_account": None, "method": {}} | facts,
        "created": facts["created"].replace("T", " ").replace("+00:00", " UTC"),
        "name": folder.path.resolve().name,
        "unit": unit,
        "summary": _summary(folder, found, decisions, audits, unit),
        "missing_evaluation": _missing_evaluation(evaluations),
        "notes": list(dict.fromkeys(note for each in evaluations.values() for note in each["notes"])),
        "figures": figures and _figure_rows(figures),
        "others": _other_evaluations(evaluations),
        "curves": evaluation_curves(evaluations, _spoken(unit)) + metric_curves(metrics),
        "trade_off": trade_off_of(metrics),
        "videos": videos,
        "images": images,
        "answers": answers,
        "no_samples": videos.empty and images.empty and not answers,
        "decisions": (judged := _decisions(decisions, evaluations)),
        "evaluated_then": any(each["outcome"] for each in judged),
        "meanings": {name: words for name, words in MEANINGS.items() if any(r["decision"] == name for r in decisions)},
        "agreement": _agreement(decisions, found, show),
        "audits": [_audit_row(each, show) for each in audits],
        "alarms": folder.read("alarms"),
        "next": _next(folder, evaluations),
        "config": {key: json.dumps(value) for key, value in folder.config.items()},
        "files": _files(folder),
        **_table(found, controls_of(after), show),
    }


def _table(found: Comparison | None, controls: Mapping[str, Mapping[str, float]], show: Outcomes) -> dict[str, Any]:
    """The main chart and table; columns without a value are left out."""
    if found is None:
        return {"rows": [], "chart": None, "narrow": None, "control": ""}
    rows = [*found.rows, found.mean] if len(found.rows) > 1 else [*found.rows]
    first = next(iter(controls), "")
    held = controls.get(first, {})
    cells = [_table_row(row, show) for row in rows]
    for row, cell in zip(rows, cells, strict=True):
        cell["controls"] = [
            show.value(each[row.category]) if row.category in each else "" for each in controls.values()
        ]
    return {
        "rows": cells,
        "controls": list(controls),
        "control": first,
        "has_p": any(row.p is not None for row in rows),
        "several": len(found.rows) > 1,
        "chart": before_after(rows, found.rates, held),
        "narrow": before_after(rows, found.rates, held, narrow=True),
        "unpaired": found.mean.difference_interval is None,
        "legend": _legend(found),
    }


def _legend(found: Comparison) -> str:
    """What the main table's small figures, p and verdicts are."""
    several = len(found.rows) > 1
    if not found.rates:
        words = "Small figures are 95\u00a0% intervals by Student\u2019s t, of a mean and of a paired change"
    else:
        words = "In percent; small figures are 95\u00a0% intervals: Wilson for a rate, Newcombe for a paired change"
    sentences = [words + ("; they are not corrected for the number of rows." if several else ".")]
    if any(row.p is not None for row in found.rows):
        test = "p is the exact two-sided McNemar test on the same attempts before and after"
        pooled = ", Holm-corrected over the categories; the last row pools the pairs of all categories, uncorrected"
        sentences.append(f"{test}{pooled if several else ''}.")
        after = " after the correction, so an interval that leaves out 0 is not enough" if several else ""
        sentences.append(f"\u201crose\u201d and \u201cfell\u201d mean p < 0.05{after}.")
    return " ".join(sentences)


def _summary(
    folder: RunFolder, found: Comparison | None, decisions: Sequence[Json], audits: Sequence[Audit], unit: str
) -> str:
    """The report's first paragraph."""
    metrics = folder.metrics()
    iterations = max((record["iteration"] for record in metrics), default=0)
    queries = queries_of(metrics)
    cost = f" and {_count(round(queries), 'reward query', 'reward queries')}" if queries else ""
    words = _fallen(found) if found else []
    words.append(f"The run made {_count(iterations, 'iteration')} of {folder.recipe}{cost}.")
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


def _fallen(found: Comparison) -> list[str]:
    """What ended below its start, the surest first; without a category that did, nothing."""
    show, fallen = Outcomes(found.rates), sorted((row for row in found.rows if row.difference < 0), key=_doubt)
    if not fallen:
        return []
    doubts = {True: "", False: ", which cannot be told from no change", None: ", no test tells whether by chance"}
    told = [
        f"{row.category} ({show.with_unit(row.before)} to {show.with_unit(row.after)}{doubts[row.told_apart]})"
        for row in fallen
    ]
    return [f"Below the start at the end: {_listed(told)}."]


def _doubt(row: Row) -> tuple[bool, float]:
    return not row.told_apart, row.difference


def _summary_of_decisions(decisions: Sequence[Json]) -> list[str]:
    made = [record["decision"] for record in decisions]
    words = f"The gate kept {made.count('keep')} of {_count(len(made), 'update')}"
    others = [name for name in dict.fromkeys((*DECISIONS, *made)) if name != "keep" and name in made]
    words += "".join(f", {DECISIONS.get(name, name)} {_times(made.count(name))}" for name in others)
    stops = [f"It stopped the run at iteration {record['iteration']}." for record in decisions if record.get("stop")]
    return [words + ".", *stops]


def _summary_of_outcomes(found: Comparison, unit: str) -> list[str]:
    """What became of the mean, in words that follow its test, and of single categories."""
    show, mean = Outcomes(found.rates), found.mean
    before, after, change = show.with_unit(mean.before), show.with_unit(mean.after), show.change(mean.difference)
    several = len(found.rows) > 1
    what = f"mean {_spoken(unit)} over {len(found.rows)} categories" if several else _spoken(unit)
    what = what[0].upper() + what[1:] + ("" if several else f" on {found.rows[0].category}")
    if mean.difference_interval:
        change += f", 95\u00a0% interval {show.interval(mean.difference_interval, '+')}"
    if mean.p is not None:
        change += f", p\u00a0{p_value(mean.p) if mean.p < 0.001 else f'= {p_value(mean.p)}'}"
    if mean.difference == 0:
        sentences = [f"{what} stayed at {after} ({change})."]
    elif mean.told_apart:
        sentences = [f"{what} {'rose' if mean.difference > 0 else 'fell'} from {before} to {after} ({change})."]
    elif mean.told_apart is None:
        sentences = [f"{what} was {before} before and {after} after ({change}); no test tells whether that is chance."]
    else:
        sentences = [f"{what} was {before} before and {after} after ({change}), which cannot be told from no change."]
    if not several or all(row.p is None for row in found.rows):
        return sentences
    better, worse = [row.category for row in found.rows if row.rose], [row.category for row in found.rows if row.fell]
    single = [f"{_listed(names)} {word}" for names, word in ((better, "rose"), (worse, "fell")) if names]
    corrected = "with p corrected for their number"
    told = f"Of single categories, {' and '.join(single)}" if single else "No single category rose or fell"
    return [*sentences, f"{told}, {corrected}."]


def _next(folder: RunFolder, evaluations: Mapping[str, Json]) -> list[tuple[str, str]]:
    """(what it does, command) of what can be done with the run now."""
    run = shlex.quote(str(folder.path))
    used = folder.config.get("eval_episodes")
    fresh = f" --episodes {used} --offset {used}" if isinstance(used, int) and used else ""
    found = [("try it where no evaluation has been", f"autotelic eval {run}{fresh}")]
    if folder.recipe.startswith("vla/"):
        found.append(("see what its reward is worth", f"autotelic audit {run}"))
        found.append(("keep episodes as a LeRobotDataset", f"autotelic record {run} FOLDER"))
    if "before" in evaluations and len(along_training(evaluations)) < 3:
        again = f"autotelic run {folder.recipe} --config {run} --eval-every 4"
        found.append((f"see {_spoken(evaluations['before'].get('unit', 'success'))} along the run", again))
    return found


def _other_evaluations(evaluations: Mapping[str, Json]) -> list[dict[str, str]]:
    """A row per category of each evaluation on other attempts than those before and after training."""
    along, rows = along_training(evaluations), []
    for name, each in evaluations.items():
        if name in along:
            continue
        for category, outcome in each["outcomes"].items():
            values = outcome["success"]
            show = Outcomes(set(values) <= {0, 1})
            mean, interval = show.value(sum(values) / len(values)), show.interval(outcome_interval(values))
            rows.append({"name": name, "category": category, "mean": mean, "interval": interval, "n": str(len(values))})
    return rows


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
    """A row per category with (before, after) of every figure, so that many categories make the table longer only."""
    names = [name for name, _ in figures.rows]
    rows = [
        (category, [tuple(figure(value) for value in pairs[i]) for _, pairs in figures.rows])
        for i, category in enumerate(figures.categories)
    ]
    return {"names": names, "rows": rows}


def _missing_evaluation(evaluations: Json) -> str:
    absent = [name for name in ("before", "after") if name not in evaluations]
    if absent:
        return f"Nothing to compare: {_listed([f'evaluations/{name}.json' for name in absent])} not written yet."
    return "Nothing to compare: the evaluations before and after share no category."


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
        "reward_change": figure(each.reward_change, "+"),
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
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return names[0] if names else "none"
    return f"{', '.join(names[:-1])} and {names[-1]}"
