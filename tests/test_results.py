"""Figures in documents are those of the committed JSON: generated tables, and numbers that cite their key.

A number cites its key behind it, in Markdown ``13.2<!-- evolve_vla.json: arms.evolve_vla.summary.mean.change -->`` and
in docstrings ``13.2 [evolve_vla.json: arms.evolve_vla.summary.mean.change]``: the figure there, or a hundred times that
(percent, points), rounded to the digits that are written.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
KEY = r"(\w+)\.json: ([^\]<>]+?)"
CITED = re.compile(rf"(?<![\w.])([-+]?\d[\d,]*(?:\.\d+)?|[-+]?\.\d+)(?:\s?%)?(?:<!-- {KEY} -->|\s\[{KEY}\])")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [path for room in ("vlm", "vla", "diffusion") for path in sorted((ROOT / room / "recipes").glob("[!_]*.py"))]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return runpy.run_path(str(BENCHMARKS / "results.py"))


# --- tables -------------------------------------------------------------------------------------


def test_tables_are_what_their_json_gives(results: dict[str, Any]) -> None:
    page = results["PAGE"].read_text()
    assert results["filled"](page) == page, "make results"
    assert [key for _, key, *_ in results["REGION"].findall(page)] == list(results["TABLES"]), "every table, once"


def test_a_figure_that_was_changed_by_hand_is_put_right(results: dict[str, Any]) -> None:
    page = results["PAGE"].read_text()
    assert page.count("+13.2 (+0.9 to +25.5)") == 1
    assert results["filled"](page.replace("+13.2 (+0.9 to +25.5)", "+31.2 (+0.9 to +25.5)")) == page


def test_a_comparison_has_two_tables(results: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outcomes = {"outcomes": {"a": {"success": [0, 1]}}, "figures": {}}
    after = {"outcomes": {"a": {"success": [1, 1]}}, "figures": {}}
    run = {"seed": 0, "before": outcomes, "cpu_seconds": 2.0, "rollouts": 4, "labels": "none", "divergence": 0.25}
    arms = {arm: {"runs": [run | {"arm": arm, "after": end}]} for arm, end in (("x", after), ("y", outcomes))}
    claim = {"better": "x", "than": "y", "measure": "mean", "mean": 0.5, "corrected": [0.1, 0.9], "holm": 0.004}
    made = {"plan": {"measures": ["mean"]}, "arms": arms, "contrasts": [claim | {"word": "shown"}]}
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "toy.json").write_text(json.dumps(made))
    tables = results["comparison"]("toy")
    monkeypatch.setitem(results["document"].__globals__, "ROOT", tmp_path)
    assert "| x | 50.0 | 100.0 | +50.0 | 0.25 | 2 |" in tables["toy: arms"]()
    assert "| x over y | mean | +50.0 (+10.0 to +90.0) | 0.004 | shown |" in tables["toy: claims"]()


# --- citations ----------------------------------------------------------------------------------


def citations() -> Iterator[tuple[str, str, str, str]]:
    """(where, number, JSON, key) of every number that cites one."""
    for path in PAGES:
        yield from ((path.name, *found) for found in cited(path.read_text()))
    for path in MODULES:
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        yield from ((f"{path.parent.parent.name}/{path.stem}", *found) for found in cited(docstring))


def cited(text: str) -> list[tuple[str, str, str]]:
    found = CITED.findall(" ".join(text.split()))
    return [(number, one or other, key or second) for number, one, key, other, second in found]


def at(name: str, key: str) -> float:
    value: Any = json.loads((BENCHMARKS / f"{name}.json").read_text())
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return float(value)


def bears(value: float, number: str) -> bool:
    digits = len(number.partition(".")[2])
    shown = float(number.replace(",", ""))
    return any(abs(round(scale * value, digits) - shown) < 1e-9 for scale in (1, 100))


@pytest.mark.parametrize(("where", "number", "name", "key"), citations())
def test_a_number_is_what_its_key_holds(where: str, number: str, name: str, key: str) -> None:
    assert bears(at(name, key), number), f"{where}: {number} cites {name}.json: {key}, which is {at(name, key)}"


def test_citations_are_found_and_can_fail() -> None:
    assert sum(where == "README.md" for where, *_ in citations()) >= 5
    text = "rose by 13.2 points, to 80.2 %<!-- a.json: x.y --> or 1,300 [b.json: z.0]"
    assert cited(text) == [("80.2", "a", "x.y"), ("1,300", "b", "z.0")]
    assert bears(0.802, "80.2") and bears(0.8021, "80") and bears(1300.2, "1,300") and bears(-0.149, "-14.9")
    assert not bears(0.803, "80.2") and not bears(0.802, "8.02") and not bears(0.149, "-14.9")
