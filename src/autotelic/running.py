"""Runs, made and opened: what the command line and ``Trainer`` share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .plugin_files import copy, plan, relative
from .recipes import recipe_of

if TYPE_CHECKING:
    from .trainers.loop import Experiment
    from .trainers.runs.run_folder import RunFolder

RUNS = Path("runs")
"""Where runs go that name no folder."""


def free_folder(recipe: str) -> Path:
    """The first of runs/NAME-1, runs/NAME-2, … that is not there."""
    name, n = recipe.removesuffix(".py").rpartition("/")[2].rpartition(".")[2], 1
    while (RUNS / f"{name}-{n}").exists():
        n += 1
    return RUNS / f"{name}-{n}"


def create(
    path: Path, recipe: str, config: Any, places: Sequence[str], command: str, inside: Collection[str] = ()
) -> tuple[RunFolder, bool]:
    """The run's folder with copies of its plugin files, and whether this process made it: of several, the main one.

    Args:
        inside: fields of the config that name files which the run's own folder will have.

    Raises:
        UsageError: the config names what is not there; then there is no folder.
    """
    from .preflight import check, located
    from .trainers.distributed import barrier, from_main, is_main
    from .trainers.runs.run_folder import RunFolder

    check(config)
    path = from_main(path)
    new = is_main() and not path.exists()
    if is_main():
        values = asdict(config)
        values = located(values) | {name: values[name] for name in inside}
        content = {"recipe": recipe, "config": values, "use": list(places)}
        files = plan(content)
        content = relative(content, files)
        folder = RunFolder.create(path, recipe=content["recipe"], config=content["config"], command=command)
        folder.describe(use=content["use"], plugins=copy(files, path))
    barrier()
    return RunFolder.open(path), new


def finished(folder: RunFolder) -> bool:
    """Whether a run was evaluated after its last checkpoint, and has nothing left to do."""
    after, saved = folder.read_json("evaluations/after"), folder.checkpoints()
    return bool(after and saved) and saved[-1].endswith(f"-{after.get('iteration', -1):06d}")


def rebuild(folder: RunFolder, **changes: Any) -> Experiment:
    """The experiment of a run, as its config.json describes it but for some fields.

    Raises:
        ValueError: in one line what of it cannot be built.
    """
    module, config = recipe_of(folder)
    if lacking := sorted(changes.keys() - {field.name for field in fields(config)}):
        raise UsageError(f"the config of {folder.recipe} has no {lacking[0]}, which this command changes")
    experiment: Experiment = module.build(replace(config, **changes), folder)
    return experiment


def at_checkpoint(folder: RunFolder, which: str, **changes: Any) -> tuple[Experiment, dict[str, Any]]:
    """The experiment of a run with the weights of a checkpoint ("best", "latest" or its name), and that state.

    Raises:
        ValueError: in one line why there is no such thing.
    """
    state = folder.load_checkpoint(which)
    experiment = rebuild(folder, **changes)
    for name, learner in experiment.stages[int(state["stage"])].learners.items():
        learner.load_state_dict(state["now"][name])
    return experiment, state


def change(folder: RunFolder, values: Mapping[str, Any], steps: str = "") -> None:
    """Change fields of a run's config.json, its max_steps to a number or by "+N"; every process takes part.

    Raises:
        UsageError: no such number, fewer rounds than it has done, or a recipe that has no max_steps.
    """
    from .trainers.distributed import barrier, is_main

    done = max((int(row["iteration"]) for row in folder.metrics()), default=0)
    values = {**values, **({"max_steps": _steps(folder, steps, done)} if steps else {})}
    barrier()  # everybody has read what is changed now
    if is_main():
        last = folder.path / "evaluations" / "after.json"
        if steps and last.exists():  # from now on an evaluation on the way
            last.rename(last.with_name(f"iteration-{done:06d}.json"))
        folder.describe(config=folder.config | values)
    folder.config = folder.config | values
    barrier()


def _steps(folder: RunFolder, steps: str, done: int) -> int:
    if "max_steps" not in folder.config:
        raise UsageError(f"{folder.recipe} has no --max-steps")
    try:
        total = int(steps) + (int(folder.config["max_steps"]) if steps.startswith("+") else 0)
    except ValueError:
        raise UsageError(f"--max-steps is a number or +N, not {steps}") from None
    if total < done:
        raise UsageError(f"--max-steps {total}: the run has done {done} already")
    return total


def export(folder: RunFolder, path: Path, which: str, *, merged: bool) -> None:
    """Write the weights of a run's checkpoint to a new folder, as other programs load them.

    Args:
        merged: all weights with the adapters in them, rather than the adapters.

    Raises:
        UsageError: the folder is not empty, there is no such checkpoint, or no adapters to merge.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} is not an empty folder: choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    experiment, _ = at_checkpoint(folder, which)
    with closing(experiment):
        experiment.save(path, merged=True) if merged else experiment.save(path)
    if not path.exists():
        raise UsageError(f"{folder.recipe} writes no weights: its experiment has no save")


def dry_run(experiment: Experiment, folder: RunFolder) -> list[str]:
    """One scratch round of a run's first stage: lines about its seconds, memory, disk and labels.

    Nothing is evaluated, so no oracle is read but by a stage that trains on one.
    """
    import resource
    import sys

    import torch

    from .trainers.loop import train

    stage = experiment.stages[0]
    scratch = replace(
        experiment, stages=[replace(stage, steps=1)], evaluate=lambda actor: {}, finish=lambda folder: None
    )
    train(scratch, folder)
    (metrics,) = folder.metrics()
    seconds = {name: metrics[f"time/{name}"] for name in ("act", "learn")}
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB"
    if torch.cuda.is_available():
        memory += f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU"
    found = [path.stat() for path in folder.checkpoint_path("latest").iterdir()]
    disk = sum(each.st_size for each in found if each.st_nlink == 1)  # without what other checkpoints hold as well
    rounds = sum(each.steps for each in experiment.stages)
    kept = experiment.keep_last + 1
    return [
        f"rounds    {rounds}, each of {stage.tasks_per_step} tasks and {stage.group_size} rollouts of one",
        f"seconds   {seconds['act']:.1f} to act and {seconds['learn']:.1f} to learn; "
        f"{rounds * sum(seconds.values()):.0f} for all rounds, without evaluations and gate",
        f"memory    {memory} at the most",
        f"disk      {disk / 2**20:.1f} MiB per checkpoint, up to {kept} of them",
        f"labels    {experiment.label_account}",
        f"reward    {metrics.get('reward', float('nan')):.3g} on average in this round",
    ]
