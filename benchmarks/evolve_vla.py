"""Does a robot policy improve itself in MetaWorld from learned progress alone? With its controls beside it.

    python benchmarks/evolve_vla.py [--quick] [--json FILE] [--runs FOLDER] [--seeds 0 1 2 3 4] [--arms ...] [--jobs 1]

Every arm starts from the same demonstrations and the same clone per seed, on the five default tasks, and is evaluated
before and after on the same 40 held-out initial states per task (greedy, success latched), and gets as many CPU seconds
of critics, acting, learning and gate, which a short run on a seed of its own makes into rounds. The figures of
docs/results.md are of seeds 0-4 and of 16 rounds an arm, before budgets were equal, and what they call evolve_vla is
best_progress; seeds from 10 on were never looked at. Runs that stand finished in the folder are read, not repeated.
"""

from __future__ import annotations

import math
from typing import Any

from common import Study

from autotelic.statistics import auc, holm, mcnemar_exact
from autotelic.sweep import MEAN, Results, Sweep

QUICK = {"tasks": ("drawer-close-v3", "reach-v3"), "max_steps": 2, "tasks_per_step": 2, "eval_episodes": 8}
QUICK |= {"bc_steps": 200}
FILMED = {"videos": 0}


def figures(sweep: Sweep, results: Results) -> dict[str, Any]:
    """Per arm: tasks up by 20 points or at 95 % per seed, whether one was harmed, and the reward against the oracle."""
    return {"robots": {arm: _figures_of(results, arm) for arm in results.runs}}


def _figures_of(results: Results, arm: str) -> dict[str, Any]:
    runs = results.runs[arm]
    tasks = list(runs[0].after["outcomes"])
    sides = [(run.measures("before"), run.measures("after")) for run in runs]
    strong = [sum(after[t] - before[t] >= 0.2 or after[t] >= 0.95 for t in tasks) for before, after in sides]
    harm, aucs = [], {}
    for task in tasks:
        rows = [(run.before["outcomes"][task], run.after["outcomes"][task]) for run in runs]
        pairs = [pair for b, a in rows for pair in zip(b["success"], a["success"], strict=True)]
        harm.append(mcnemar_exact(sum(b > a for b, a in pairs), sum(a > b for b, a in pairs), "worse"))
        both = [side for row in rows for side in row]
        value = auc([s for side in both for s in side["score"]], [s for side in both for s in side["success"]])
        aucs[task] = None if math.isnan(value) else round(value, 3)
    harmed = dict(zip(tasks, holm(harm), strict=True))
    return {"tasks_up_20_or_at_95": strong, "harm_p": harmed, "reward_auc": aucs}


def with_oracle(sweep: Sweep, results: Results) -> dict[str, Any]:
    """``figures``, and how much of the oracle's gain learned progress reaches."""
    found = figures(sweep, results)
    if {"evolve_vla", "oracle_grpo"} <= set(results.runs):
        learned, oracle = (results.summary(arm)[MEAN]["change"] for arm in ("evolve_vla", "oracle_grpo"))
        found["learned_over_oracle_gain"] = round(learned / oracle, 2) if oracle else None
    return found


STUDY = Study(
    recipe="vla/evolve_vla",
    arms={
        "evolve_vla": {},
        "evolve_vla, no goal features": {"goal_features": False},
        "evolve_vla, no gate": {"gate": "none"},
        "evolve_vla, no accumulation": {"accumulate": "last"},
        "evolve_vla, no horizon extension": {"horizon_shares": (1.0,)},
        "evolve_vla, no termination": {"termination": False},
        "best_progress": {"recipe": "vla/best_progress"},
        "oracle_grpo": {"recipe": "vla/oracle_grpo"},
        "raft": {"recipe": "vla/raft"},
        "random": {"rewards": "random"},
        "more_imitation": {"recipe": "vla/more_imitation"},
        "imitation, best on tuning seeds": {"recipe": "vla/more_imitation", "max_steps": 10},
    },
    seeds=range(10, 18),
    base=(
        ("evolve_vla", "best_progress"),
        ("evolve_vla", "more_imitation"),
        ("evolve_vla", "imitation, best on tuning seeds"),
        ("evolve_vla", "random"),
        ("evolve_vla", "raft"),
        ("oracle_grpo", "evolve_vla"),
        ("evolve_vla, no gate", "evolve_vla"),
        ("evolve_vla", "evolve_vla, no accumulation"),
        ("evolve_vla", "evolve_vla, no horizon extension"),
        ("evolve_vla", "evolve_vla, no termination"),
        ("evolve_vla", "evolve_vla, no goal features"),
    ),
    budget="120s",
    quick=QUICK,
    quick_arms=("evolve_vla", "more_imitation"),
    flags=FILMED,
    further=with_oracle,
)

if __name__ == "__main__":
    STUDY.main(__doc__)
