"""comparison.html: what a comparison shows, for people; of the report's kind, and as self-contained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...numbers import Outcomes, figure, mean, p_value
from ...untrusted import whole
from .arm_charts import forest, lines, scatter
from .report import pages

Json = Mapping[str, Any]

PRICES = {"divergence": "KL from the start, nats per attempt", "cost": "seconds of an arm"}
WORDS = {"shown": "better than", "reversed": "worse than", "undecided": "not told apart from"}


def write_page(document: Json, path: Path) -> None:
    """Write a comparison's document (see ``autotelic.comparing``) as a page."""
    path.write_text(whole(pages().get_template("compared.html").render(_content(document, path.parent.name))))


def table_of(document: Json) -> str:
    """The arms and the primary contrasts, for a terminal."""
    show, plan = _shown_as(document), document["plan"]
    measure = plan["measures"][0]
    width = max(len(arm) for arm in document["arms"]) + 2
    told = [f"{'arm':{width}}{'rounds':>8}{'seconds':>9}{'before':>9}{'after':>9}{'nats':>9}"]
    for row in _arms(document, measure, show):
        cells = f"{row['rounds']:>8}{row['seconds']:>9}{row['before']:>9}{row['after']:>9}{row['divergence']:>9}"
        told.append(f"{row['name']:{width}}{cells}")
    for row in map(lambda each: _row(each, show), document["contrasts"]):
        limits = f" ({row['corrected']})" if row["corrected"] else ""
        told.append(f"{row['name']}, {row['measure']}: {row['mean']}{limits}, {row['word']}")
    return "\n".join([*told, *document["notes"]])


def _content(document: Json, name: str) -> dict[str, Any]:
    show, plan = _shown_as(document), document["plan"]
    measure = plan["measures"][0]
    rows = [_row(each, show) for each in document["contrasts"]]
    outcome = f"mean {_unit(document)}" if measure == "mean" else measure
    titles = {"reward": "training reward over rounds", "outcome": f"{outcome} at the evaluations"}
    drawn = [
        (titles[what], lines(each, rates=show.rates and what == "outcome"))
        for what, each in document["curves"].items()
        if any(len(points) > 1 for points in each.values())
    ]
    return {
        "name": name,
        "seeds": plan["seeds"],
        "budget": _budget(plan),
        "written": plan["written"].replace("T", " ").replace("+00:00", " UTC"),
        "summary": _summary(document, show),
        "notes": document["notes"],
        "forest": forest([(_name(each), each) for each in document["contrasts"]], rates=show.rates),
        "contrasts": rows,
        "arms": _arms(document, measure, show),
        "measure": outcome,
        "clock": _clock(plan),
        "categories": [_row(each, show) for each in document["categories"]],
        "curves": drawn,
        "fronts": [_front(what, each, outcome, show) for what, each in document["fronts"].items() if each["points"]],
        "plan": _plan(plan),
    }


def _front(what: str, each: Json, outcome: str, show: Outcomes) -> tuple[str, Any, str]:
    words = f"On the front: {', '.join(each['front'])}."
    if each["unknown"]:
        words += f" Not known of {', '.join(each['unknown'])}."
    chart = scatter(each["points"], each["front"], PRICES[what], outcome, rates=show.rates)
    return f"against {'its divergence from the start' if what == 'divergence' else 'its cost'}", chart, words


def _summary(document: Json, show: Outcomes) -> str:
    """Every primary contrast in words that follow its corrected interval."""
    told = []
    for each in document["contrasts"]:
        row = _row(each, show)
        limits = f", corrected interval {row['corrected']}" if row["corrected"] else ", of a single seed"
        what = "" if each["measure"] == "mean" else f" in {each['measure']}"
        change = show.change(each["mean"]) if _is_rate(each) else row["mean"]
        told.append(f"{each['better']} is {WORDS[each['word']]} {each['than']}{what} ({change}{limits}).")
    return " ".join(told)


def _row(each: Json, show: Outcomes) -> dict[str, str]:
    show = show if _is_rate(each) else Outcomes(False)
    return {
        "name": _name(each),
        "measure": each["measure"] + ("" if each["of"] == "after" else ", change"),
        "mean": show.value(each["mean"], "+"),
        "interval": show.interval(each["interval"], "+"),
        "corrected": show.interval(each["corrected"], "+"),
        "p": p_value(each["p"]),
        "holm": p_value(each["holm"]),
        "word": each["word"],
    }


def _is_rate(each: Json) -> bool:
    """Whether a contrast is of outcomes and not of a figure."""
    return "/" not in each["measure"]


def _name(each: Json) -> str:
    return f"{each['better']} over {each['than']}"


def _arms(document: Json, measure: str, show: Outcomes) -> list[dict[str, str]]:
    show = show if "/" not in measure else Outcomes(False)
    found = []
    for arm, entry in document["arms"].items():
        runs, row = entry["runs"], entry["summary"].get(measure)
        plan = document["plan"]["arms"][arm]
        far = [run["divergence"] for run in runs]
        setup = (plan["cost"] or {}).get("setup", 0.0)
        found.append(
            {
                "name": arm,
                "rounds": str(plan["rounds"] or "own"),
                "seconds": figure(setup + mean(run["cpu_seconds"] for run in runs)),
                "rollouts": figure(mean(run["rollouts"] or 0 for run in runs), digits=6),
                "before": show.value(row["before"]) if row else "",
                "after": show.value(row["after"]) if row else "",
                "change": show.value(row["change"], "+") if row else "",
                "interval": show.interval(row["interval"], "+") if row else "",
                "divergence": "" if None in far else figure(mean(far)),
            }
        )
    return found


def _shown_as(document: Json) -> Outcomes:
    runs = [run for entry in document["arms"].values() for run in entry["runs"]]
    values = {v for run in runs for row in run["after"]["outcomes"].values() for v in row["success"]}
    return Outcomes(values <= {0, 1})


def _unit(document: Json) -> str:
    return str(next(iter(document["arms"].values()))["runs"][0]["after"]["unit"])


def _budget(plan: Json) -> str:
    kind, amount = plan["budget"]["kind"], plan["budget"]["amount"]
    if kind == "own":
        return "as many rounds as its flags say"
    return f"{amount:g} {f'{_clock(plan)} seconds' if kind == 'seconds' else kind}"


def _clock(plan: Json) -> str:
    clocks = {(entry["cost"] or {}).get("clock", "cpu") for entry in plan["arms"].values()}
    return "GPU" if clocks == {"wall"} else "CPU"


def _plan(plan: Json) -> dict[str, str]:
    told = {"seeds": ", ".join(map(str, plan["seeds"])), "measures": ", ".join(plan["measures"])}
    told["contrasts"] = "; ".join(f"{better} over {than}" for better, than in plan["primary"])
    for arm, entry in plan["arms"].items():
        told[arm] = f"{entry['recipe']} {entry['flags']}".strip() + _cost(entry)
    return told


def _cost(entry: Json) -> str:
    if not entry["cost"]:
        return ""
    cost = entry["cost"]
    parts = f"{cost['setup']:.3g} before the first round, {cost['round']:.3g} a round, {cost['look']:.3g} a look"
    return f": {entry['rounds']} rounds; seconds: {parts} of the gate"
