"""PPO from an environment's own reward beside Stable-Baselines3's, at equal steps of the environment.

    python benchmarks/ppo.py --sb3-python sb3/bin/python [--quick] [--json FILE] [--runs FOLDER] [--seeds 0 1 2]
                             [--cases pendulum ...]

Each seed is a run of ``autotelic run vla/ppo`` with the case's flags, and one of Stable-Baselines3's PPO for as many
steps (``benchmarks/peers/sb3_ppo.py``, in an environment of its own), with the RL Zoo's hyperparameters (in GoToObj
those of MiniGrid's); in Reacher, for which the Zoo's are meant for five times the steps, with some that did better on a
tuning seed (-4.5 against -5.5), in FetchReach and PushT, for which it has none, with Reacher's and like ones. In
FetchReach ours begins with three demonstrations and in GoToObj with twenty, which the other has no use for: "before" is
what imitating them reached. Both are then evaluated, without noise, from the same 40 initial states, which neither
learned from. CPU seconds of ours are of the whole command, evaluations included; of the other those of training alone.
Flags were chosen on seeds from 100 on, and so were the thresholds: a tenth below what Stable-Baselines3 alone reached
there; in FetchReach, where that is -19 and -46, half a step above imitation's -3. PushT has no threshold: it is
reported, and wants an environment of its own (``docs/environments.md``). Runs that stand finished in the folder are
read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from common import Worker, parser_of, save

from autotelic.statistics import mean_interval, paired_difference_interval

HERE = Path(__file__).parent
EPISODES = 40


@dataclass(frozen=True)
class Case:
    """An environment, and how both sides learn in it.

    Attributes:
        task: as ``--tasks`` has it, with the number of demonstrations that ours imitates first.
        id: Gymnasium's, with the module that registers it.
        flags: of ``autotelic run vla/ppo``.
        peer: hyperparameters of Stable-Baselines3.
        threshold: what ours must reach; None where nothing was required.
        measure: the mean return, or the share of successes.
        chunk: steps of the environment per decision of ours.
    """

    task: str
    id: str
    flags: Mapping[str, Any]
    peer: Mapping[str, Any]
    threshold: float | None
    measure: Literal["returns", "successes"] = "returns"
    chunk: int = 1
    quick: Mapping[str, Any] = field(default_factory=lambda: {"max-steps": 2})


SMALL = {"hidden-size": 64, "num-layers": 2}
"""The other's network, which has 64 units in two layers, for policy and values each."""

CASES = {
    "pendulum": Case(
        "gymnasium/Pendulum-v1",
        "Pendulum-v1",
        {
            **{"tasks-per-step": 20, "max-steps": 25, "gamma": 0.9, "lr": 1e-3, "lr-schedule": "linear"},
            **{"minibatches": 64, **SMALL},
        },
        {
            **{"n_envs": 4, "n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10, "ent_coef": 0.0},
            **{"learning_rate": 1e-3, "clip_range": 0.2, "use_sde": True, "sde_sample_freq": 4},
        },
        -173.6,
    ),
    "cartpole": Case(
        "gymnasium/CartPole-v1",
        "CartPole-v1",
        {
            **{"head": "categorical", "tasks-per-step": 4, "max-steps": 60, "gamma": 0.98, "gae-lambda": 0.9},
            **{"lr": 1e-3, "lr-schedule": "linear", "minibatches": 8, **SMALL},
        },
        {
            **{"n_envs": 8, "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20},
            **{"ent_coef": 0.0, "learning_rate": "lin_0.001", "clip_range": "lin_0.2"},
        },
        450.0,
    ),
    "reacher": Case(
        "gymnasium/Reacher-v5",
        "Reacher-v5",
        {
            **{"tasks-per-step": 40, "max-steps": 100, "gamma": 0.9, "lr": 1e-3, "lr-schedule": "linear"},
            **{"minibatches": 32, **SMALL},
        },
        {
            **{"normalize": True, "n_envs": 4, "n_steps": 512, "batch_size": 64, "n_epochs": 10, "gamma": 0.9},
            **{"gae_lambda": 0.95, "learning_rate": 3e-4, "clip_range": 0.2},
        },
        -5.3,
    ),
    "fetch_reach": Case(
        "robotics/FetchReach-v4:3",
        "gymnasium_robotics:FetchReach-v4",
        {"tasks-per-step": 20, "max-steps": 50, "gamma": 0.95, "lr": 3e-4, "minibatches": 16, **SMALL},
        {
            **{"normalize": True, "n_envs": 4, "n_steps": 512, "batch_size": 64, "n_epochs": 10, "gamma": 0.95},
            **{"gae_lambda": 0.95, "learning_rate": 1e-3, "clip_range": 0.2},
        },
        -2.5,
    ),
    "go_to_obj": Case(
        "babyai/GoToObj:20",
        "minigrid:BabyAI-GoToObj-v0",
        {
            **{"head": "categorical", "tasks-per-step": 64, "max-steps": 120, "gamma": 0.99, "lr": 1e-3},
            **{"lr-schedule": "linear", "minibatches": 16, **SMALL},
        },
        {
            **{"n_envs": 8, "n_steps": 128, "batch_size": 64, "gae_lambda": 0.95, "gamma": 0.99, "n_epochs": 10},
            **{"ent_coef": 0.0, "learning_rate": 2.5e-4, "clip_range": 0.2},
        },
        0.9,
        "successes",
    ),
    "push_t": Case(
        "pusht/PushT",
        "gym_pusht:gym_pusht/PushT-v0",
        {"tasks-per-step": 10, "max-steps": 30, "gamma": 0.99, "lr": 3e-4, "minibatches": 16, **SMALL},
        {"normalize": True, "n_envs": 4, "n_steps": 512, "batch_size": 64, "n_epochs": 10, "learning_rate": 3e-4},
        None,
        chunk=8,
    ),
}


def ours(name: str, seed: int, runs: Path, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns and successes of one run, seeds of the initial states, CPU seconds and steps of the environment."""
    folder, case = runs / f"{name}-{seed}", CASES[name]
    words = ["--tasks", case.task, "--seed", str(seed)]
    words += ["--workers", "-1", "--videos", "0", "--eval-episodes", str(EPISODES), "--output-dir", str(folder)]
    words += [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    told = folder / "cost.json"
    if not told.exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "autotelic", "run", "vla/ppo", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        told.write_text(json.dumps({"cpu": seconds, "flags": dict(flags)}))
    rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (row,) = json.loads((folder / "evaluations" / "after.json").read_text())["outcomes"].values()
    (start,) = json.loads((folder / "evaluations" / "before.json").read_text())["outcomes"].values()
    return {
        "returns": row["score"],
        "successes": row["success"],
        "before": {"returns": fmean(start["score"]), "successes": fmean(start["success"])},
        "seeds": row["seeds"],
        "cpu": json.loads(told.read_text())["cpu"],
        "steps": int(rounds[-1]["segments"]) * case.chunk,
    }


def theirs(peer: Worker | None, case: Case, seed: int, place: Path, steps: int, seeds: Sequence[int]) -> Any:
    """The same of Stable-Baselines3; None without it."""
    if not place.exists():
        if peer is None:
            return None
        job = {"env": case.id, "seed": seed, "steps": steps, "hyperparameters": case.peer, "eval_seeds": list(seeds)}
        place.write_text(json.dumps(peer.step(job)))
    return json.loads(place.read_text())


def summary(case: Case, rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds with their intervals, and whether ours reaches the threshold and nine tenths of theirs."""
    means, past = ([fmean(row[case.measure]) for row in side] for side in (rows, others))
    figures: dict[str, Any] = {
        "measure": case.measure,
        "ours": means,
        "mean": fmean(means),
        "before": fmean(row["before"][case.measure] for row in rows),
        **({} if case.threshold is None else {"threshold": case.threshold, "reached": fmean(means) >= case.threshold}),
        "steps": [row["steps"] for row in rows],
        "cpu_seconds": [round(row["cpu"], 1) for row in rows],
    }
    if len(means) > 1:
        figures["interval"] = list(mean_interval(means))
    if past:
        figures |= {"stable_baselines3": past, "stable_baselines3_mean": fmean(past)}
        figures["stable_baselines3_cpu_seconds"] = [round(row["cpu"], 1) for row in others]
        figures["within_a_tenth"] = fmean(means) >= fmean(past) - 0.1 * abs(fmean(past))
        if len(means) > 1:
            figures["difference_interval"] = list(paired_difference_interval(past, means))
    return figures


def main() -> None:
    parser = parser_of(__doc__, "two rounds on one seed")
    parser.add_argument("--sb3-python", type=Path, help="of the environment with stable-baselines3")
    parser.add_argument("--runs", type=Path, help="keep the runs here; runs/ppo if not given, nowhere if --quick")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=[name for name in CASES if name != "push_t"])
    options = parser.parse_args()
    peer = None if options.sb3_python is None else _peer(options)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs or (Path(scratch) if options.quick else Path("runs/ppo"))
        runs.mkdir(parents=True, exist_ok=True)
        for name in options.cases:
            case, rows, others = CASES[name], [], []
            for seed in options.seeds[:1] if options.quick else options.seeds:
                flags = {**case.flags, **(case.quick if options.quick else {})}
                rows.append(ours(name, seed, runs, flags))
                place = runs / f"{name}-{seed}-sb3.json"
                other = theirs(peer, case, seed, place, rows[-1]["steps"], rows[-1]["seeds"])
                others += [] if other is None else [other]
                past = "" if other is None else f", Stable-Baselines3 {fmean(other[case.measure]):.2f}"
                print(f"{name}, seed {seed}: {fmean(rows[-1][case.measure]):.2f}{past}", flush=True)
            found[name] = summary(case, rows, others)
            print(json.dumps({name: found[name]}), flush=True)
    if peer is not None:
        peer.close()
    save(options, {"cases": found, "seeds": options.seeds})


def _peer(options: argparse.Namespace) -> Worker:
    return Worker([str(options.sb3_python), str(HERE / "peers" / "sb3_ppo.py")])


if __name__ == "__main__":
    main()
