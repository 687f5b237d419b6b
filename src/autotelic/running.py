"""Runs, made and opened: what the command line and ``Trainer`` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .plugin_files import copy, plan, relative
from .recipes import recipe_of

if TYPE_CHECKING:
    from .trainers.loop import Experiment
    from .trainers.run_folder import RunFolder

RUNS = Path("runs")
"""Where runs go that name no folder."""


def free_folder(recipe: str) -> Path:
    """The first of runs/NAME-1, runs/NAME-2, … that is not there."""
    name, n = recipe.removesuffix(".py").rpartition("/")[2].rpartition(".")[2], 1
    while (RUNS / f"{name}-{n}").exists():
        n += 1
    return RUNS / f"{name}-{n}"


def create(path: Path, recipe: str, config: Any, places: Sequence[str], command: str) -> tuple[RunFolder, bool]:
    """The run's folder with copies of its plugin files, and whether this process made it: of several, the main one."""
    from .trainers.distributed import barrier, from_main, is_main
    from .trainers.run_folder import RunFolder

    path = from_main(path)
    new = is_main() and not path.exists()
    if is_main():
        content = {"recipe": recipe, "config": asdict(config), "use": list(places)}
        files = plan(content)
        content = relative(content, files)
        folder = RunFolder.create(path, recipe=content["recipe"], config=content["config"], command=command)
        folder.describe(use=content["use"], plugins=copy(files, path))
    barrier()
    return RunFolder.open(path), new


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
