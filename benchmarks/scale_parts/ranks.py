"""One process and two: how far metrics and weights are apart, what is sent between them, what a checkpoint writes.

AdamW divides a gradient by its own size plus eps, which lifts the rounding noise of gradients near zero: eps is 1e-5.
Conversations are in double precision, over three rounds; the presets of robots and pictures in single, over one: in a
simulator the last bit of a weight is another episode later on. Metrics that measure rounding itself (``ROUNDED``)
and times are left out. Differences are relative where numbers are above one.
"""

from __future__ import annotations

import math
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autotelic.options import parse, run_options
from autotelic.recipes import find_recipe
from autotelic.testing import vlms
from autotelic.trainers import summaries
from autotelic.trainers.advantages import grpo
from autotelic.trainers.curricula import Uniform
from autotelic.trainers.distributed import barrier, is_main
from autotelic.trainers.gates import Gate
from autotelic.trainers.learner import AnchorSet, Optimisation, PolicyLearner
from autotelic.trainers.loop import Experiment, Stage, train
from autotelic.trainers.objectives import Entropy, KLPenalty, PPOClip, WeightedImitation
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.trainers.weights import tensors_of
from autotelic.types import Actor, Task, Verdict
from autotelic.vlm.policy import TokenPolicy

ROUNDED = ("drift/log_probs", "objective/accuracy")
MINIBATCHES = (1, 8)
EPS = 1e-5
ROUNDS = 3
RECIPES: Mapping[str, Sequence[str]] = {
    "vla/oracle_grpo": ("--tasks", "reach-v3", "--workers", "0", "--videos", "0"),
    "vla/ppo": ("--tasks", "reach-v3", "--workers", "0", "--videos", "0"),
    "diffusion/ddpo": (),
}
"""Tiny presets beside the conversation of ``experiment``, where it need not be quick."""
SHARED = ("--max-steps", "1", "--tasks-per-step", "10", "--lr", "1e-4")


def figures(quick: bool) -> dict[str, Any]:
    """The three figures, each beside its requirement and what it was before."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, redirect_stdout(sys.stderr):
        folder = Path(name)
        others = [] if quick else list(RECIPES)
        runs(folder, "one", others)
        _two(folder, others)
        apart = {
            path.name: differences(path, folder / "two" / path.name) for path in sorted((folder / "one").iterdir())
        }
        ratio = checkpoint_ratio(folder / "saved")
    metrics, weights = ({run: found[i] for run, found in apart.items()} for i in (0, 1))
    return {
        "metrics_difference": max(metrics.values()),
        "weights_difference": max(weights.values()),
        "differences": {run: {"metrics": metrics[run], "weights": weights[run]} for run in apart},
        "metrics_required": 1e-6,
        "gathered_bytes": gathered_bytes(),
        "gathered_required": "constant, at most 2,000",
        "checkpoint_ratio": ratio,
        "checkpoint_ratio_before": 3.3,
        "checkpoint_ratio_required": 1.7,
    }


# --- the same run by one process and by two ---------------------------------------------------------------------------


def vowels(completions: Sequence[str], **_: Any) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) / 10 for text in completions]


def tiny_policy() -> TokenPolicy:
    """The same weights in every process."""
    policy = TokenPolicy.of(*vlms.vlm("qwen2_vl"), horizon=6)
    policy.module.double()
    return policy


class Keeps(Gate):
    """A gate that keeps every other look."""

    looks = 0

    def __call__(self, candidate: Actor, against: Mapping[str, Actor]) -> Verdict:
        self.looks += 1
        return Verdict("keep" if self.looks % 2 else "wait")


def asked() -> list[Task]:
    return [Task(f"q{i}", f"how many circle ? {'red ' * (i % 3)}", category=f"{i % 2} to two") for i in range(512)]


def experiment(minibatches: int, gate: Gate | None = None) -> Experiment:
    """Rounds of answers with all that tells metrics: clipping, a KL, an entropy, groups, anchors, categories."""
    policy = tiny_policy()
    anchors = AnchorSet(policy.encode(asked()[:6], ["no ."] * 6), WeightedImitation(), weight=0.1, size=3)
    learner = PolicyLearner(
        policy,
        PPOClip() + 0.1 * KLPenalty("start") - 0.01 * Entropy(),
        Optimisation(lr=1e-4, epochs=2, minibatches=minibatches, eps=EPS),
        advantage=grpo(),
        references={"start": policy.fork("start")},
        anchors=anchors,
    )
    tasks = Uniform({f"{i} to two": asked()[i::2] for i in range(2)})
    stage = Stage(ROUNDS, policy, tasks, vowels, {"policy": learner}, tasks_per_step=5, group_size=4, gate=gate)
    return Experiment([replace(stage, gate_every=1)], lambda actor: {})


def runs(folder: Path, who: str, recipes: Sequence[str]) -> None:
    """Every run, by this process alone or with its part of it."""
    for minibatches in MINIBATCHES:
        _run(folder / who / f"vlm {minibatches}", lambda run, m=minibatches: experiment(m))
        for recipe in recipes:
            words = (*RECIPES[recipe], *SHARED, "--minibatches", str(minibatches))
            _run(
                folder / who / f"{recipe.replace('/', ' ')} {minibatches}",
                lambda run, r=recipe, w=words: _of(r, w, run),
            )


def _run(path: Path, build: Any) -> None:
    if is_main():
        RunFolder.create(path, recipe="scale", config={}, command="")
    barrier()
    run = RunFolder.open(path)
    with closing(build(run)) as made:
        train(replace(made, finish=lambda folder: None, evaluate=lambda actor: {}), run)


def _of(recipe: str, words: Sequence[str], run: RunFolder) -> Experiment:
    module = find_recipe(recipe).load()
    made: Experiment = module.build(parse(run_options(module.Config.tiny()), words, recipe).config, run)
    for group in made.stages[0].learners["policy"].optimizer.param_groups:  # type: ignore[attr-defined]
        group["eps"] = EPS
    return made


def _two(folder: Path, recipes: Sequence[str]) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = f"import ranks, pathlib; ranks.runs(pathlib.Path({str(folder)!r}), 'two', {list(recipes)!r})"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"PYTHONPATH": path, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    if any([process.wait() for process in started]):
        raise SystemExit("a process of two failed")


def differences(one: Path, two: Path) -> tuple[float, float]:
    """The largest difference of a metric and of a weight; infinity where one has a metric that the other lacks."""
    alone, shared = RunFolder.open(one), RunFolder.open(two)
    apart = [0.0]
    for mine, theirs in zip(alone.metrics(), shared.metrics(), strict=True):
        for name in mine.keys() | theirs.keys():
            if name.startswith("time/") or name in ROUNDED:
                continue
            a, b = mine.get(name, math.inf), theirs.get(name, -math.inf)
            apart.append(0.0 if math.isnan(a) and math.isnan(b) else abs(a - b) / max(1.0, abs(a)))
    states = [list(tensors_of(run.load_checkpoint()["now"]["policy"]["policy"])) for run in (alone, shared)]
    return max(apart), max(float((a - b).abs().max()) for a, b in zip(*states, strict=True))


# --- what is sent and written -----------------------------------------------------------------------------------------


def gathered_bytes() -> dict[str, dict[str, int]]:
    """Bytes per rollout: what is gathered, and what pickling the rollouts themselves takes."""
    tasks = asked()[:64]
    rollouts = tiny_policy().act(tasks, 8)
    for rollout in rollouts:
        rollout.scores |= {"total": 0.5, "vowels": 0.5}
        rollout.info["abs_advantage"] = 0.1
    found: dict[str, dict[str, int]] = {}
    for count in (8, 64, 512):
        sent = [
            summaries._sent(r, {id(task): i for i, task in enumerate(tasks)}, frozenset()) for r in rollouts[:count]
        ]
        whole = len(pickle.dumps(rollouts[:count]))
        found[str(count)] = {"summaries": len(pickle.dumps(sent)) // count, "rollouts": whole // count}
    return found


def checkpoint_ratio(path: Path) -> float:
    """The most bytes that one checkpoint of a gated run adds to the disk, over weights and AdamW's moments."""
    run, seen, added = RunFolder.create(path, recipe="scale", config={}, command=""), set[int](), list[int]()
    save = run.save_checkpoint

    def measured(*arguments: Any, **options: Any) -> Path:
        written = save(*arguments, **options)
        new = {each.stat().st_ino: each.stat().st_size for each in written.iterdir()}
        added.append(sum(size for inode, size in new.items() if inode not in seen))
        seen.update(new)
        return written

    run.save_checkpoint = measured  # type: ignore[method-assign]
    made = experiment(1, Keeps())
    train(made, run)
    state = made.stages[0].learners["policy"].state_dict()
    return max(added) / sum(tensor.nbytes for tensor in tensors_of([state["policy"], state["optimizer"]["state"]]))
