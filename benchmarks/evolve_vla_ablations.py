"""Which mechanisms of evolve_vla matter? Each is taken out, or put in, alone.

    python benchmarks/evolve_vla_ablations.py [--quick] [--json FILE] [--runs FOLDER] [--seeds 0 1 2 3 4]
                                              [--arms ...] [--workers 1]

Every arm is the default recipe but for one option, on the five default tasks, and is evaluated before and after on
the same 40 held-out initial states per task (greedy, success latched). Arms share demonstrations and clone with the
default per seed, except the one that changes the demonstrations. "over default" is the difference of after between
the arm and the default, seed by seed, with a 95 % interval over seeds; for an arm with another start it is the
difference of gains. Runs that stand finished in the folder are read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from evolve_vla import launch, summary

from autotelic.statistics import mean_interval
from autotelic.trainers.run_folder import RunFolder, versions

TASKS = ("drawer-open-v3", "door-open-v3", "drawer-close-v3", "push-v3", "reach-v3")
ARMS: dict[str, list[str]] = {
    "default": [],
    "network alone": ["--critic", "network"],
    "independent noise": ["--rho", "0"],
    "pointwise": ["--accumulate", "last"],
    "accumulated as in the paper": ["--accumulate", "milestones"],
    "no gate": ["--no-gate"],
    "growing horizon": ["--horizon-shares", "0.6", "1"],
    "no termination": ["--no-termination"],
    "5 demonstrations": ["--tasks", *(f"{task}:5" for task in TASKS)],
}
OTHER_START = ("5 demonstrations",)
QUICK = ["--tasks", "drawer-close-v3", "reach-v3", "--iterations", "2", "--states", "2", "--eval-episodes", "8"]
QUICK += ["--clone-steps", "200"]
COMMAND = "python benchmarks/evolve_vla_ablations.py --json benchmarks/evolve_vla_ablations.json"


def words(arm: str, seed: int, quick: bool) -> list[str]:
    """What the command line is given."""
    return ["vla/evolve_vla", *ARMS[arm], "--seed", str(seed), *(QUICK if quick else [])]


def over_default(arm: str, figures: dict[str, Any]) -> dict[str, Any]:
    """The arm against the default, seed by seed, in points of mean success."""

    def per_seed(name: str) -> np.ndarray:
        rows = figures[name]["per_seed"]
        own_start = arm in OTHER_START
        return np.array([np.mean(row["after"]) - own_start * np.mean(row["before"]) for row in rows])

    difference = per_seed(arm) - per_seed("default")
    interval = [round(v, 1) for v in mean_interval(difference)] if len(difference) > 1 else None
    return {
        "mean": round(float(difference.mean()), 1),
        "interval": interval,
        "seeds": difference.round(1).tolist(),
        "of": "gains" if arm in OTHER_START else "success after",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one arm and the default, two tasks, one seed")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    options = parser.parse_args()
    arms, seeds = list(dict.fromkeys(["default", *options.arms])), options.seeds
    if options.quick:
        arms, seeds = ["default", "independent noise"], [0]
    runs = options.runs or Path(tempfile.mkdtemp(prefix="evolve-vla-ablations-"))
    places = {(arm, seed): runs / f"{arm.replace(' ', '-')}-{seed}" for arm in arms for seed in seeds}
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(lambda key: launch(words(*key, options.quick), places[key]), places))
    figures: dict[str, Any] = {}
    for arm in arms:
        row = summary([RunFolder.open(places[arm, seed]) for seed in seeds])
        figures[arm] = {"options": " ".join(ARMS[arm]), "seeds": seeds, **row}
        figures[arm]["over default"] = beside = over_default(arm, figures)
        shown = f"{beside['mean']:+.1f} {beside['interval']}"
        print(f"{arm:28} {row['mean_before']:5.1f} -> {row['mean_after']:5.1f}   {shown}", flush=True)
    if options.json:
        document = {"command": COMMAND, "machine": platform.machine(), "versions": versions(), "figures": figures}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
