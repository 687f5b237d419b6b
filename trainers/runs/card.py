"""The model card of a run: README.md in its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import escape

from ...numbers import Interval, Outcomes, figure, p_value
from .comparison import Comparison, Row, compare
from .evaluations import figures_of, known

if TYPE_CHECKING:
    from .run_folder import RunFolder


def card_text(folder: RunFolder, citation: Sequence[str] = ()) -> str:
    """Recipe, results, label account, command, versions and citations as Markdown."""
    facts = folder.read_json("config")
    parts = [f"# {folder.path.resolve().name}", f"A run of the recipe `{folder.recipe}` with autotelic."]
    parts += ["## Results", *_results(folder)]
    parts += ["## Labels and gate", *_gate(folder, facts.get("label_account"))]
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", folder.command)), default=0))
    parts += ["## Command", f"{fence}\n{folder.command}\n{fence}"]
    parts += ["Everything needed to repeat it is in `config.json`; the curves and samples are in `report.html`."]
    parts += ["## Versions", ", ".join(f"{name} {number}" for name, number in facts["versions"].items())]
    if citation:
        parts += ["## Cite", "\n".join(f"- {line}" for line in citation)]
    return "\n\n".join(parts) + "\n"


def _results(folder: RunFolder) -> list[str]:
    evaluations = folder.evaluations()
    if "before" not in evaluations or "after" not in evaluations:
        return ["The run has not been evaluated before and after training."]
    evaluations = {name: known(each) for name, each in evaluations.items()}
    found = compare(evaluations["before"], evaluations["after"])
    if found is None:
        return ["The evaluations before and after share no category."]
    unit = evaluations["after"].get("unit", "success")
    tested = any(row.p is not None for row in found.rows)
    heads = [_inline(unit), "attempts", "before", "after", "change", *(["p"] if tested else [])]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in (*found.rows, *([found.mean] if len(found.rows) > 1 else [])):
        lines.append(f"| {' | '.join(_cells(row, found)[: len(heads)])} |")
    notes = [note for evaluation in evaluations.values() for note in evaluation["notes"]]
    legend = "In brackets 95 % intervals."
    if found.rates:
        legend = (
            "In percent, in brackets 95 % intervals; p is the exact McNemar test of the same attempts before and "
            "after, two-sided, Holm-corrected over the categories (pooled and uncorrected in the last row)."
        )
    return ["\n".join(lines), legend, *_figures(evaluations), *map(_inline, dict.fromkeys(notes))]


def _figures(evaluations: Mapping[str, Any]) -> list[str]:
    figures = figures_of(evaluations["before"], evaluations["after"])
    if figures is None:
        return []
    heads = [f"{_inline(category)} {side}" for category in figures.categories for side in ("before", "after")]
    lines = [f"| figure | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, pairs in figures.rows:
        cells = [figure(value, digits=4) for pair in pairs for value in pair]
        lines.append(f"| {_inline(name)} | {' | '.join(cells)} |")
    return ["\n".join(lines)]


def _inline(text: str) -> str:
    """Words that somebody else wrote, as one line of Markdown without HTML that stays in its cell of a table."""
    return str(escape(" ".join(str(text).split()))).replace("|", "\\|")


def _cells(row: Row, found: Comparison) -> list[str]:
    show = Outcomes(found.rates)

    def cell(value: float, interval: Interval | None, sign: str = "") -> str:
        limits = show.interval(interval, sign)
        return show.value(value, sign) + (f" [{limits}]" if limits else "")

    return [
        _inline(row.category),
        str(row.episodes[1]),
        cell(row.before, row.before_interval),
        cell(row.after, row.after_interval),
        cell(row.difference, row.difference_interval, "+"),
        p_value(row.p),
    ]


def _gate(folder: RunFolder, label_account: str | None) -> list[str]:
    records = folder.read("gate")
    decisions = [record["decision"] for record in records]
    lines = [f"Label account: `{label_account}`." if label_account else "The run states no label account."]
    if not decisions:
        return [*lines, "No gate decision was taken."]
    counts = ", ".join(f"{name} {decisions.count(name)}" for name in dict.fromkeys(decisions))
    lines.append(f"The gate decided {len(decisions)} times: {counts}.")
    return lines + [
        f"It stopped the run at iteration {record['iteration']}." for record in records if record.get("stop")
    ]
