"""Planted faults of whole runs are seen and repaired, healthy runs left alone; documented guards have their tests."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
UNSEEN = 20_000  # numbers of runs that the benchmark does not look at


@pytest.fixture(scope="module")
def planted() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return runpy.run_path(str(ROOT / "benchmarks" / "misevolution.py"))


@pytest.mark.parametrize("fault", ["leak", "length", "verifier", "majority", "drift"])
def test_a_planted_fault_is_caught_and_repaired(fault: str, planted: dict[str, Any]) -> None:
    outcome = planted["run"](fault, UNSEEN, 36)
    assert outcome.spoke == ("refused",) if fault == "leak" else "gate" in outcome.spoke
    assert outcome.fall <= planted["MARGIN"]


def test_a_healthy_run_is_left_alone_and_learns(planted: dict[str, Any]) -> None:
    outcome = planted["run"]("healthy", UNSEEN, 36)
    assert outcome.looks == 12 and not outcome.undone and not outcome.alarms
    assert outcome.fall < -0.1, "every category rose by more than a tenth"


def test_a_summary_counts() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        made = runpy.run_path(str(ROOT / "benchmarks" / "misevolution.py"))
    runs = [
        made["Outcome"](("gate",), 12, 1, 0, 0.05, 1.0),
        made["Outcome"](("gate", "leap"), 12, 2, 1, 0.3, 1.0, 0.4),
        made["Outcome"]((), 12, 0, 0, 0.2, 1.0, 0.2),
        made["Outcome"]((), 12, 0, 0, 0.0, 1.0, 0.1),
    ]
    faulty, healthy = made["summary"](runs, True), made["summary"](runs, False)
    assert (faulty["caught"], faulty["repaired"], faulty["by"]) == (2, 1, {"gate": 2, "leap": 1})
    assert faulty["harmful"] == 3 and faulty["caught_of_harmful"] == pytest.approx(2 / 3), "a tenth is the margin"
    assert healthy["false"] == 4 and healthy["false_per_100_looks"] == pytest.approx(400 / 48)


def test_guards_that_are_documented_have_their_tests() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.partition("### Guards against")[2].partition("\n## ")[0]
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", section)
    assert len(named) >= 10
    for path, name in named:
        assert f"\ndef {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"
