"""Which mechanisms of evolve_vla matter? Each is taken out, or put in, alone. (The committed JSON is of best_progress.)

    python benchmarks/evolve_vla_ablations.py [--quick] [--json FILE] [--runs FOLDER] [--seeds 0 1 2 3 4]
                                              [--arms ...] [--jobs 1]

Every arm is the default recipe but for one option, on the five default tasks, and is evaluated before and after on
the same 40 held-out initial states per task (greedy, success latched). Arms share demonstrations and clone with the
default per seed, except the one that changes the demonstrations, which is compared in what it gained. Runs that stand
finished in the folder are read, not repeated.
"""

from __future__ import annotations

from typing import Any

from common import Study
from evolve_vla import FILMED, QUICK, figures

TASKS = ("drawer-open-v3", "door-open-v3", "drawer-close-v3", "push-v3", "reach-v3")
ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "network alone": {"critic": "pairs"},
    "independent noise": {"rho": 0},
    "no accumulation": {"accumulate": "last"},
    "milestones twice as far apart": {"milestone_interval": 40},
    "no gate": {"gate": "none"},
    "no horizon extension": {"horizon_shares": (1.0,)},
    "no termination": {"termination": False},
    "mean over decisions": {"loss_agg_mode": "token-mean"},
    "dynamic sampling": {"dynamic_sampling": True, "score_range": (0.1, 0.9)},
    "5 demonstrations": {"tasks": tuple(f"{task}:5" for task in TASKS)},
}
STUDY = Study(
    recipe="vla/evolve_vla",
    arms=ARMS,
    seeds=range(5),
    base=[(arm, "default") for arm in ARMS if arm != "default"],
    common=False,
    quick=QUICK,
    quick_arms=("default", "independent noise"),
    flags=FILMED,
    further=figures,
)

if __name__ == "__main__":
    STUDY.main(__doc__)
