"""Scripts of benchmarks/: they import, have the options of all, and ask their recipes for what these offer."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotelic.comparing.arms import require_comparable
from autotelic.comparing.budget import Budget
from autotelic.sweep import Sweep

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "common")
STUDIES = [path for path in SCRIPTS if "STUDY = Study(" in path.read_text()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_has_the_options_of_all(path: Path) -> None:
    done = subprocess.run([sys.executable, str(path), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout and "--json" in done.stdout


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_asks_for_what_its_recipes_offer(
    path: Path, quick: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    study: Any = runpy.run_path(str(path))["STUDY"]
    arms = {arm: study.flags_of(arm, quick) for arm in (study.quick_arms if quick else study.arms)}
    jobs = Sweep(study.recipe, arms, study.seeds[:1], tmp_path).jobs_of(study.seeds[0])
    assert len(jobs) == len(arms) and all(job.config() for job in jobs)
    require_comparable(jobs, common=study.common, budgeted=Budget.of(study.budget).kind != "own")
    named = {study.base} if isinstance(study.base, str) else {arm for pair in study.base for arm in pair}
    assert named <= set(study.arms)
    if quick:
        assert any(arms[arm] != study.flags_of(arm, False) for arm in arms), "the quick flags are taken"
