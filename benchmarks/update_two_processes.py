"""One update on recorded rollouts by one process and by two: how far the weights are apart.

    python benchmarks/update_two_processes.py [--quick] [--json FILE]

A robot policy acts in MetaWorld, its rollouts are written to disk, and every method of ``METHODS`` learns from them
twice: in this process, and in two gloo processes that share whole groups. Cases with an odd number of groups give one
process fewer, the case with one group leaves it with none. The learning rate is ``LR``, so a difference of ``LR`` would
mean that an update was lost.

Weights are float32. AdamW divides a gradient by its own size plus eps, which lifts the rounding noise of gradients near
zero: ``max_difference`` is with eps 1e-5, ``max_difference_small_eps`` with the default 1e-8.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from common import parser_of, save
from safetensors.torch import load_file, save_file

from autotelic.envs.pool import Pool
from autotelic.trainers.advantages import ReinforcePlusPlus, grpo
from autotelic.trainers.distributed import share
from autotelic.trainers.learner import Optimisation, PolicyLearner
from autotelic.trainers.objectives import KLPenalty, PairwiseRegression, PPOClip
from autotelic.trainers.pairing import all_pairs
from autotelic.trainers.runs import checkpoint
from autotelic.trainers.runs.records import rollouts_from_state, rollouts_state
from autotelic.types import Rollout, Task
from autotelic.vla.actor import RobotActor
from autotelic.vla.policy import ActionModel, ActionPolicy

LR = 5e-4
EPS = (1e-5, 1e-8)
GROUP = 4
OBSERVATION = 21
ENVIRONMENTS = ("metaworld/drawer-open-v3", "metaworld/reach-v3", "metaworld/push-v3")
METHODS: Mapping[str, Mapping[str, Any]] = {
    "grpo": {"objective": PPOClip() + 0.01 * KLPenalty(), "advantage": grpo()},
    "reinforce++": {"objective": PPOClip(), "advantage": ReinforcePlusPlus()},
    "pairwise": {"objective": PairwiseRegression(0.1), "prepare": (all_pairs,)},
}


def new_policy() -> ActionPolicy:
    """The same weights in every process."""
    torch.manual_seed(0)
    return ActionPolicy(ActionModel(OBSERVATION, hidden=64))


def record(folder: Path, groups: int, horizon: int) -> None:
    """Write rollouts with a total score: how near the hand is to the object in the end."""
    tasks = [
        Task(f"{name}-{seed}", name.split("/")[1], seed=seed, extra={"environment": name})
        for seed in range(groups)
        for name in ENVIRONMENTS
    ][:groups]
    with Pool(ENVIRONMENTS, workers=0) as pool:
        rollouts = RobotActor(new_policy(), pool, horizon=horizon).act(tasks, GROUP)
    for rollout in rollouts:
        last = torch.from_numpy(rollout.output.observations[-1])
        rollout.scores["total"] = -float((last[:3] - last[4:7]).norm())
    checkpoint.save(folder / "rollouts", rollouts_state(rollouts))


def cases(groups: int) -> list[tuple[str, int, float]]:
    """Every method, number of groups and eps that is compared."""
    return [(method, count, eps) for method in METHODS for count in (groups, 1) for eps in EPS]


def updates(folder: Path) -> dict[str, torch.Tensor]:
    """Every case's flat weights after one update on this process's share of the recorded groups."""
    everything = rollouts_from_state(checkpoint.load(folder / "rollouts"))
    by_task: dict[str, list[Rollout]] = {}
    for rollout in everything:
        by_task.setdefault(rollout.task.id, []).append(rollout)
    groups = list(by_task.values())
    weights = {}
    for method, count, eps in cases(len(groups)):
        policy = new_policy()
        references = {"reference": policy.fork("reference")}
        optimisation = Optimisation(lr=LR, epochs=2, eps=eps)
        learner = PolicyLearner(policy, optimisation=optimisation, references=references, **METHODS[method])
        learner.update([rollout for group in share(groups[:count]) for rollout in group])
        weights[name_of(method, count, eps)] = flat(policy)
    return weights


def name_of(method: str, count: int, eps: float) -> str:
    return f"{method}, {count} groups, eps {eps:g}"


def flat(policy: ActionPolicy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def two_processes(folder: Path) -> list[dict[str, torch.Tensor]]:
    """The weights that each of two processes ends with."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launch, __file__, "--update", str(folder)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment)
    return [load_file(folder / f"weights-{rank}.safetensors") for rank in range(2)]


def main() -> None:
    parser = parser_of(__doc__, "5 groups of 25 steps instead of 15 of 100")
    parser.add_argument("--update", type=Path, help=argparse.SUPPRESS)  # what the two processes are started with
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.update:
        save_file(updates(options.update), options.update / f"weights-{os.environ['RANK']}.safetensors")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record(folder, *((5, 25) if options.quick else (15, 100)))
        one, two = updates(folder), two_processes(folder)
    start = flat(new_policy())
    apart: dict[str, float] = {}
    for case, weights in one.items():
        apart[case] = max(float((weights - other[case]).abs().max()) for other in two)
        moved = float((weights - start).abs().max())
        print(f"{case:34s} difference {apart[case]:.1e}, update {moved:.1e}", file=sys.stderr)
        if moved < LR / 2:
            raise SystemExit(f"{case}: nothing was learned, so there is nothing to compare")
    worst = [max(value for case, value in apart.items() if case.endswith(f"eps {eps:g}")) for eps in EPS]
    result = {"max_difference": worst[0], "max_difference_small_eps": worst[1]}
    print(json.dumps(result))
    save(options, {**result, "cases": apart, "cpu_seconds": round(time.process_time(), 1)})


if __name__ == "__main__":
    main()
