"""Does a robot policy improve itself in MetaWorld from learned progress alone? With its controls beside it.

    python benchmarks/evolve_vla.py [--quick] [--json FILE] [--runs FOLDER] [--seeds 0 1 2 3 4] [--arms ...]

Every arm starts from the same demonstrations and the same clone per seed, on the five default tasks, and is
evaluated before and after on the same 40 held-out initial states per task (greedy, success latched). Those
states and the seeds 0-4 were fixed before the first run and nothing was chosen on them. Runs that stand
finished in the folder are read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from autotelic.statistics import auc, holm, mcnemar_exact, mean_interval
from autotelic.trainers.run_folder import RunFolder, versions

ARMS: dict[str, list[str]] = {
    "evolve_vla": ["vla/evolve_vla"],
    "evolve_vla, no goal features": ["vla/evolve_vla", "--no-goal-features"],
    "evolve_vla, no gate": ["vla/evolve_vla", "--no-gate"],
    "oracle_grpo": ["vla/oracle_grpo"],
    "raft": ["vla/raft"],
    "more_imitation": ["vla/more_imitation"],
}
QUICK = ["--tasks", "drawer-close-v3", "reach-v3", "--iterations", "2", "--states", "2", "--eval-episodes", "8"]
QUICK += ["--clone-steps", "200"]
COMMAND = "python benchmarks/evolve_vla.py --json benchmarks/evolve_vla.json"


def launch(words: list[str], folder: Path) -> RunFolder:
    """A finished run of a recipe, from the folder if it is there."""
    if not (folder / "evaluations" / "after.json").exists():
        print("running", " ".join(words), flush=True)
        command = [sys.executable, "-m", "autotelic", "run", *words, "--videos", "0", "--output-dir", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}")
    return RunFolder.open(folder)


def summary(folders: list[RunFolder]) -> dict[str, Any]:
    """An arm's figures over its seeds, success in percentage points."""
    looks = [(f.evaluations()["before"]["outcomes"], f.evaluations()["after"]["outcomes"]) for f in folders]
    tasks = list(looks[0][0])

    def rates(index: int) -> np.ndarray:
        return np.array([[100 * np.mean(look[index][task]["success"]) for task in tasks] for look in looks])

    before, after = rates(0), rates(1)
    gains = (after - before).mean(1)
    interval = [round(v, 1) for v in mean_interval(gains)] if len(gains) > 1 else None
    strong = ((after - before >= 20) | (after >= 95)).sum(1)
    return {
        "tasks": tasks,
        "before": before.mean(0).round(1).tolist(),
        "after": after.mean(0).round(1).tolist(),
        "mean_before": round(float(before.mean()), 1),
        "mean_after": round(float(after.mean()), 1),
        "mean_gain": round(float(gains.mean()), 1),
        "mean_gain_interval": interval,
        "per_seed": [{"before": b.tolist(), "after": a.tolist()} for b, a in zip(before, after, strict=True)],
        "tasks_up_20_or_at_95": strong.tolist(),
        "harm_p": dict(zip(tasks, holm([_harm(looks, task) for task in tasks]), strict=True)),
        "reward_auc": {task: _auc(looks, task) for task in tasks},
        "cpu_seconds": [round(sum(row["time/cpu"] for row in f.metrics()), 1) for f in folders],
        "gate": [[row["decision"] for row in f.read("gate")] for f in folders],
    }


def _harm(looks: list[Any], task: str) -> float:
    """One-sided exact McNemar: has the task fallen, over the pooled states of all seeds?"""
    pairs = [
        (b, a) for before, after in looks for b, a in zip(*(x[task]["success"] for x in (before, after)), strict=True)
    ]
    losses = sum(b > a for b, a in pairs)
    return mcnemar_exact(losses, sum(a > b for b, a in pairs), "worse")


def _auc(looks: list[Any], task: str) -> float | None:
    """The training reward against the oracle, over both evaluations of all seeds."""
    rows = [evaluation[task] for look in looks for evaluation in look]
    value = auc([s for row in rows for s in row["score"]], [s for row in rows for s in row["success"]])
    return None if np.isnan(value) else round(value, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, two tasks, two iterations, two arms")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.arms = [0], ["evolve_vla", "more_imitation"]
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs or Path(scratch)
        figures: dict[str, Any] = {}
        for arm in options.arms:
            place = arm.replace(", ", "-").replace(" ", "-")
            more = QUICK if options.quick else []
            folders = [launch([*ARMS[arm], "--seed", str(s), *more], runs / f"{place}-{s}") for s in options.seeds]
            figures[arm] = row = {"seeds": options.seeds, **summary(folders)}
            print(f"{arm}: {row['mean_before']} -> {row['mean_after']}  {row['mean_gain_interval']}", flush=True)
    result: dict[str, Any] = {"command": COMMAND, "machine": platform.processor() or platform.machine()}
    result |= {"versions": versions(), "quick": options.quick, "figures": figures}
    if options.json:
        if options.json.exists() and not options.quick:  # arms that this call left out stay
            figures = result["figures"] = json.loads(options.json.read_text())["figures"] | figures
        if {"evolve_vla", "oracle_grpo"} <= set(figures):
            learned, oracle = figures["evolve_vla"]["mean_gain"], figures["oracle_grpo"]["mean_gain"]
            result["learned_over_oracle_gain"] = round(learned / oracle, 2) if oracle else None
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    else:
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
