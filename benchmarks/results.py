"""Write the tables of docs/results.md again from the JSON beside these scripts: `make results`.

    python benchmarks/results.py [--quick] [--json FILE]

A table stands between `<!-- results: KEY -->` and `<!-- /results -->`, where KEY is one of TABLES below; what stands
around it is written by hand. --quick changes nothing and ends with 1 where a table is not what its JSON gives. A new
comparison needs no more than `comparison("FILE")` here and the two marks there.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from common import ROOT, parser_of, save

from autotelic.comparing.contrasts import contrasts
from autotelic.numbers import mean, p_value, unsigned
from autotelic.sweep import MEAN, Results

PAGE = ROOT / "docs" / "results.md"
REGION = re.compile(r"(<!-- results: (.+?) -->\n)(.*?)(<!-- /results -->)", re.DOTALL)


def document(name: str) -> dict[str, Any]:
    """The JSON of a script."""
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as Markdown."""
    lines = [head, *rows]
    told = [re.sub(r"\|  (?=\|)", "| ", f"| {' | '.join(cells)} |") for cells in lines]
    return "\n".join([told[0], "|" + "---|" * len(head), *told[1:]]) + "\n"


def points(value: float, sign: str = "") -> str:
    """A share in percent, or in points with a sign, to one decimal."""
    return unsigned(f"{100 * value:{sign}.1f}", sign)


def change(value: float, interval: Sequence[float] | None) -> str:
    limits = "" if interval is None else f" ({points(interval[0], '+')} to {points(interval[1], '+')})"
    return points(value, "+") + limits


# --- comparisons --------------------------------------------------------------------------------


def arms(name: str, labels: Mapping[str, str], over: str, title: str) -> str:
    """Arms before and after with the gain, the difference to another arm after, and CPU seconds."""
    found = Results.from_json(document(name))
    pairs = [(arm, over) for arm in labels if arm != over]
    differences = {row.better: row for row in contrasts(found, pairs)}
    rows = []
    for arm, label in labels.items():
        row, other = found.summary(arm)[MEAN], differences.get(arm)
        cpu = mean(run.cpu_seconds for run in found.runs[arm])
        beside = "" if other is None else change(other.mean, other.interval)
        cells = [label, points(row["before"]), points(row["after"]), change(row["change"], row["interval"]), beside]
        rows.append([*cells, f"{cpu:.0f}"])
    head = ["arm", "mean success before", "after", "gain (95 % interval)", title, "CPU seconds"]
    return table(head, rows)


def seeds(name: str, arm: str) -> str:
    """Per seed every category before and after, the mean, how many rose, and what the gate decided."""
    found = document(name)
    runs = Results.from_json(found).runs[arm]
    tasks = list(runs[0].after["outcomes"])
    rows = []
    for run, strong in zip(runs, found["robots"][arm]["tasks_up_20_or_at_95"], strict=True):
        before, after = run.measures("before"), run.measures("after")
        sides = [f"{100 * before[task]:.0f} → {100 * after[task]:.0f}" for task in tasks]
        whole = f"{points(before[MEAN])} → {points(after[MEAN])}"
        rows.append([str(run.seed), *sides, whole, str(strong), ", ".join(run.gate)])
    head = ["seed", *(task.removesuffix("-v3") for task in tasks), "mean", "tasks at +20 or 95 %", "gate"]
    return table(head, rows)


def shown(name: str) -> str:
    """The primary contrasts of a comparison, with their words."""
    rows = []
    for each in document(name)["contrasts"]:
        claim = f"{each['better']} over {each['than']}"
        limits = each["corrected"] and change(each["mean"], each["corrected"])
        rows.append([claim, each["measure"], limits or points(each["mean"], "+"), p_value(each["holm"]), each["word"]])
    return table(["claim", "in", "difference (corrected interval)", "p (Holm)", ""], rows)


def comparison(name: str) -> dict[str, Callable[[], str]]:
    """The two tables of a comparison: who reached what, and what is shown."""

    def reached() -> str:
        found = document(name)
        results, plan = Results.from_json(found), found["plan"]
        measure, rows = plan["measures"][0], []
        for arm, runs in results.runs.items():
            row = results.summary(arm)[measure]
            far = [run.divergence for run in runs]
            nats = "" if None in far else f"{mean(value for value in far if value is not None):.3g}"
            cpu = mean(run.cpu_seconds for run in runs)
            gain = change(row["change"], row["interval"])
            rows.append([arm, points(row["before"]), points(row["after"]), gain, nats, f"{cpu:.0f}"])
        return table(["arm", "before", "after", "gain (95 % interval)", "KL, nats", "CPU seconds"], rows)

    return {f"{name}: arms": reached, f"{name}: claims": partial(shown, name)}


def figures(name: str, labels: Mapping[str, str], *, over: str = "", seeds: bool = False, control: str = "") -> str:
    """The same of scripts whose JSON has a summary in percent per arm."""
    rows = []
    for arm, label in labels.items():
        row = document(name)["figures"][arm]
        low, high = row["mean_gain_interval"]
        gain = "" if arm == control else f"{row['mean_gain']:+.1f} ({low:+.1f} to {high:+.1f})"
        cells = [label, *([str(len(row["seeds"]))] if seeds else []), f"{row['mean_before']:.1f}"]
        cells += [f"{row['mean_after']:.1f}", gain]
        if over:
            beside = row[f"over {over}"]
            low, high = beside["interval"]
            cells.append("" if arm == over else f"{beside['mean']:+.1f} ({low:+.1f} to {high:+.1f})")
        rows.append([*cells, f"{mean(row['cpu_seconds']):.0f}"])
    head = ["arm", *(["seeds"] if seeds else []), "before", "after", "gain (95 % interval)"]
    return table([*head, *([f"over {over}"] if over else []), "CPU seconds"], rows)


# --- other scripts ------------------------------------------------------------------------------


def kept(found: Mapping[str, Any], form: str = "{:.2f}") -> str:
    """median (low to high)."""
    return f"{form} ({form} to {form})".format(found["median"], found["low"], found["high"])


def fractions() -> str:
    """What pools have of the speed of plain stepping."""
    found = document("environments")["mujoco_fraction"]
    names = dict.fromkeys(name.partition(",")[0] for name in found)
    rows = []
    for name in names:
        one, five = (found[f"{name}, chunk {chunk}"] for chunk in (1, 5))
        rows.append([name, kept(one), kept(five), "an instance per episode" if five["own"] else "states"])
    return table(["environment", "chunks of 1", "chunks of 5", "how episodes are kept apart at 5"], rows)


def rollouts() -> str:
    """MetaWorld beside Gymnasium's vectors and the limit of physics."""
    found = document("rollout")["intervals"]
    rows = []
    for name, label, digits in ROLLOUTS:
        value, low, high = (f"{found[name][part]:.{digits}f}" for part in ("value", "low", "high"))
        times = "" if name == "state_limit_fraction" else " \N{MULTIPLICATION SIGN}"
        rows.append([label, value + times, f"{low} to {high}"])
    return table(["figure", "", ""], rows)


def planted() -> str:
    """What of planted faults is caught and repaired, and what of healthy runs is left alone."""
    found, rows = document("misevolution")["figures"], []
    for fault, row in found.items():
        if fault == "healthy":
            continue
        low, high = row["interval"]
        caught = f"{row['caught']} of {row['runs']} ({100 * low:.0f} to {100 * high:.0f} %)"
        harmful = f"{100 * row['caught_of_harmful']:.0f} % of {row['harmful']}"
        rows.append([fault, caught, harmful, f"{row['repaired']} of {row['caught']}", points(row["largest_fall"])])
    head = ["planted", "caught (95 % interval)", "of those harmful without a gate", "repaired", "largest fall, points"]
    return table(head, rows)


ROLLOUTS = (
    ("state_limit_fraction", "states: share of what `mj_step` alone reaches, mean of six tasks", 2),
    ("state_ratio", "states: over the better of Gymnasium's SyncVectorEnv and AsyncVectorEnv with the same policy", 1),
    ("state_ratio_without_groups", "the same where no two episodes share a reset", 1),
    (
        "pixel_ratio",
        "pictures of 64 pixels with a conv policy: over MetaWorld's own environment rendered at every step",
        0,
    ),
    ("pixel_equal_quality_ratio", "the same at the renderer's own quality (shadows, mirror, multisampling)", 1),
)
ARMS = {
    "evolve_vla": "`vla/evolve_vla`",
    "evolve_vla, no gate": "the same without the gate",
    "evolve_vla, no goal features": "the same without features of the goal",
    "raft": "`vla/raft`: the best episode of each group is imitated",
    "oracle_grpo": "`vla/oracle_grpo` (upper bound)",
    "more_imitation": "`vla/more_imitation`",
}
ABLATIONS = {
    "default": "default",
    "growing horizon": "growing horizon: the first half of the iterations at .6 of it",
    "pointwise": "pointwise: the newest estimate instead of the best",
    "accumulated as in the paper": "accumulated over milestones, as in the paper",
    "no gate": "no gate",
    "no termination": "no termination",
    "network alone": "network alone, end conditions at the gate",
    "independent noise": "independent noise",
    "5 demonstrations": "five demonstrations of every task",
}
CONTROL = "unseen tasks, imitated after all"
BREADTH = {
    **{name: name for name in ("ten tasks, rule S", "ten tasks, rule F", "ten tasks, continued imitation")},
    "unseen tasks": "two unseen tasks, 32 iterations",
    CONTROL: "their demonstrations imitated after all (control)",
    "pictures": "pictures (policy and critic see frames)",
    "pictures, continued imitation": "pictures, continued imitation",
}
TABLES: dict[str, Callable[[], str]] = {
    "evolve_vla: arms": partial(arms, "evolve_vla", ARMS, "more_imitation", "over continued imitation"),
    "evolve_vla: seeds": partial(seeds, "evolve_vla", "evolve_vla"),
    "evolve_vla_ablations: arms": partial(figures, "evolve_vla_ablations", ABLATIONS, over="default"),
    "evolve_vla_breadth: arms": partial(figures, "evolve_vla_breadth", BREADTH, seeds=True, control=CONTROL),
    "misevolution: faults": planted,
    "environments: fractions": fractions,
    "rollout: ratios": rollouts,
}
"""What can stand in the page. Further tables are written by hand still."""


def filled(page: str) -> str:
    """The page with every table as its JSON gives it. Raises KeyError for a table that nobody writes."""
    return REGION.sub(lambda match: match[1] + TABLES[match[2]]() + match[4], page)


def main() -> None:
    options = parser_of(__doc__, "nothing is written, what differs is told").parse_args()
    before = PAGE.read_text()
    after = filled(before)
    both = zip(REGION.findall(before), REGION.findall(after), strict=True)
    changed = [key for (_, key, old, _), (*_, new, _) in both if old != new]
    print(
        "\n".join(f"{key}: {'differs' if options.quick else 'written again'}" for key in changed) or "nothing changed"
    )
    if not options.quick:
        PAGE.write_text(after)
    save(options, {"tables": list(TABLES), "changed": changed})
    sys.exit(bool(changed) and options.quick)


if __name__ == "__main__":
    main()
