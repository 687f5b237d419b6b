"""Toy runs of two processes: ``torchrun ... -m tests.toy_processes PART FOLDER``, where PART is one of those below."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autotelic.errors import UsageError
from autotelic.trainers import distributed
from autotelic.trainers.distributed import barrier, gather, is_main
from autotelic.trainers.gates import BestSoFar, NonInferiority
from autotelic.trainers.loop import Experiment, Stage, train
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.trainers.weights import checksum

from .toy_run import build, folder_at, honest, spelled


def opinionated(**columns: Any) -> list[float]:
    """A judge that thinks otherwise in every process."""
    return [value if is_main() else 1 - value for value in spelled(**columns)]


opinionated.families = frozenset({"opinion"})  # type: ignore[attr-defined]


class Moody(NonInferiority):
    """A gate of somebody's own that decides otherwise in every process."""

    def __call__(self, candidate: Any, against: Any) -> Any:
        verdict = super().__call__(candidate, against)
        return verdict if is_main() else type(verdict)("rollback", "mood", stop=True)


def stage_of(experiment: Experiment) -> Stage:
    return experiment.stages[0]


def disagree(folder: Path) -> list[object]:
    """Whether weights are equal everywhere after runs whose judges, and gates, answer differently."""
    says: list[object] = []
    for gate in (BestSoFar, Moody):
        path = folder / gate.__name__
        run = folder_at(path) if is_main() else None
        barrier()

        def made(probes: Any, judge: Any, gate: Any = gate, **options: Any) -> Any:
            kept = {} if gate is BestSoFar else {"margin": options["margin"], "repairs": options["repairs"]}
            return gate(probes, opinionated, **kept)

        experiment = build(honest, 4, made, gate_every=1)
        train(experiment, run or RunFolder.open(path))
        sums = gather([checksum(stage_of(experiment).actor.state_dict())])
        says.append(sums[0] == sums[1])
    return says


def differ(folder: Path) -> list[object]:
    """What a run says in each process when one of them is given other weights."""
    run = folder_at(folder / "run") if is_main() else None
    barrier()
    experiment = build(honest, 2, None)
    if not is_main():
        with torch.no_grad():
            next(iter(stage_of(experiment).actor.parameters())).add_(1.0)  # type: ignore[attr-defined]
    try:
        train(experiment, run or RunFolder.open(folder / "run"))
    except UsageError as error:
        return gather(["refused" if "different weights" in str(error) else str(error)])
    return gather(["nothing"])


RUNS = (
    ("vlm/grpo", ("--samples", "2", "--sampled-questions", "3")),
    ("vla/oracle_grpo", ("--tasks", "point-mass", "--workers", "0", "--videos", "0")),
    ("diffusion/ddpo", ()),
)


def evaluate(folder: Path) -> list[object]:
    """The evaluation of each modality's smallest run at its start, as every process has it."""
    from autotelic.options import parse, run_options
    from autotelic.recipes import find_recipe

    from .point_mass import register_point_mass

    register_point_mass()
    says: list[object] = []
    for recipe, flags in RUNS:
        module = find_recipe(recipe).load()
        config = parse(run_options(module.Config.tiny()), flags, recipe).config
        path = folder / f"{recipe} by {distributed.processes()}"
        if is_main():
            RunFolder.create(path, recipe=recipe, config={}, command="")
        barrier()
        with closing(module.build(config, RunFolder.open(path))) as experiment:
            result = experiment.evaluate(stage_of(experiment).actor)
        says.append(gather([json.loads(json.dumps(result))]))
    return says


def stuck(folder: Path) -> list[object]:
    """What the first process says where the second one is stuck in its reward."""
    return _alone(folder, 2.0, lambda: time.sleep(8))


def broken(folder: Path) -> list[object]:
    """What the first process says where the second one breaks off."""
    return _alone(folder, 60.0, lambda: None)


def _alone(folder: Path, seconds: float, meanwhile: Callable[[], None]) -> list[object]:
    run = folder_at(folder / "run") if is_main() else None
    barrier()

    def late(**columns: Any) -> list[float]:
        if not is_main():
            meanwhile()
            os._exit(0)
        return honest(**columns)

    begun = time.monotonic()
    try:
        train(replace(build(late, 2, None), ddp_timeout=seconds), run or RunFolder.open(folder / "run"))
    except UsageError as error:
        return [str(error), time.monotonic() - begun]
    return ["nothing"]


def terminated(folder: Path) -> list[object]:
    """How a run ends in each process, and what it saved, when a scheduler ends the second one."""
    run = folder_at(folder / "run") if is_main() else None
    barrier()

    def asked(**columns: Any) -> list[float]:
        if not is_main():
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(**columns)

    run = run or RunFolder.open(folder / "run")
    try:
        train(replace(build(asked, 4, None), save_every=9), run)
    except KeyboardInterrupt:
        return gather([run.load_checkpoint()["iteration"]])
    return gather(["went on"])


def leave(_: Path) -> list[object]:
    """Whether gloo's threads end with the group, whatever was imported since there was one."""
    before = len(os.listdir("/proc/self/task"))
    gather([0])
    importlib.import_module("torch.distributed.nn.functional")  # as torch's compiler does in the midst of a run
    during = len(os.listdir("/proc/self/task"))
    main = is_main()
    distributed._leave()
    after = len(os.listdir("/proc/self/task"))
    return [during > before, after - before] if main else []


def ppo(folder: Path) -> list[object]:
    """Runs with values, of which one process has two episodes a round and the other one: in whole, and in segments."""
    from autotelic.vla.recipes import ppo as recipe

    from .test_vla_ppo import config_of

    for minibatches in (1, 8):
        path = folder / f"{minibatches} by {distributed.processes()}"
        if is_main():
            RunFolder.create(path, recipe="vla/ppo", config={}, command="")
        barrier()
        run = RunFolder.open(path)
        with closing(recipe.build(config_of(tasks_per_step=3, minibatches=minibatches), run)) as experiment:
            train(replace(experiment, finish=lambda folder: None), run)
    return []


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts = {"disagree": disagree, "differ": differ, "evaluate": evaluate, "leave": leave, "ppo": ppo}
    parts |= {"terminated": terminated, "stuck": stuck, "broken": broken}
    said = parts[sys.argv[1]](Path(sys.argv[2]))
    if said and os.environ.get("RANK", "0") == "0":
        print(json.dumps({"says": said}))
