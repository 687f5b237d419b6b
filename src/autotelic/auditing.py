"""``autotelic audit``: which model, on which episodes.

Models: a run folder (its progress estimator), "critic" or "judge" of the run that the episodes come from, a progress
model's name (``autotelic list progress``; a pretrained judge with ``=MODEL`` for another than its usual weights), or
``module:object`` or ``FILE.py:object``, a progress model or a reward function; a class is called first.

Episodes: a run folder, whose policy then acts in its own tasks from states that nothing else uses for judging; a
LeRobotDataset with "next.success", such as ``autotelic record`` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .plugins import imported, is_place, named, table

if TYPE_CHECKING:
    from .rewards.audit import Audit, HackingGap
    from .trainers.loop import Experiment
    from .trainers.runs.run_folder import RunFolder

Rebuild = Callable[["RunFolder"], "Experiment"]

OF_A_RUN = ("critic", "judge")


@dataclass(eq=False)
class Source:
    """Episodes, and what is known of where they come from: demonstrations, and steps between two observations."""

    episodes: Sequence[Any]
    demonstrations: Sequence[Any] = ()
    every: int = 1


def audit_run(folder: RunFolder) -> tuple[list[Audit], list[HackingGap]]:
    """A run's own reward on all its evaluations, per category, and its hacking gaps.

    Raises:
        UsageError: no evaluation of it holds scores.
    """
    from .rewards.audit import audit_scores, hacking_gap

    evaluations = list(folder.evaluations().values())
    pairs: dict[str, list[tuple[float, float]]] = {}
    for evaluation in evaluations:
        for category, outcome in evaluation.get("outcomes", {}).items():
            rows = zip(outcome.get("score", ()), outcome["success"], strict=False)
            pairs.setdefault(category, []).extend((s, o) for s, o in rows if s is not None and o is not None)
    scored = {category: rows for category, rows in pairs.items() if rows}
    if not scored:
        if not (folder.path / "start").exists():
            raise UsageError(
                f"no evaluation of {folder.path} holds scores of the training reward: {folder.recipe} keeps none, and "
                "episodes to audit a model on are those of robots"
            )
        raise UsageError(f"no evaluation of {folder.path} holds scores: autotelic audit MODEL --episodes {folder.path}")
    audits = [audit_scores(*zip(*rows, strict=True), name="the reward", on=c) for c, rows in scored.items()]
    compared = [e for e in evaluations if any(o.get("score") for o in e.get("outcomes", {}).values())]
    return audits, hacking_gap(compared) if len(compared) > 1 else []


@dataclass(frozen=True)
class Chosen:
    """Which episodes of a run's policy: initial states per task, and how many to skip."""

    count: int = 40
    offset: int = 0


def audit_model(name: str, where: Path, rebuild: Rebuild, chosen: Chosen) -> list[Audit]:
    """A model on episodes, per task.

    Args:
        name, where: as the module says.
        rebuild: a run folder -> its experiment.

    Raises:
        UsageError: either is unknown, or they do not fit.
    """
    from .envs.simulator import layout_of, registered, title_of
    from .rewards.audit import audit_progress, audit_reward
    from .rewards.progress.estimates import sees

    with ExitStack() as stack:
        open_run = _opener(rebuild, stack)
        stage = open_run(where) if (where / "config.json").is_file() else None
        model, accumulator = _model(name, stage, open_run)
        frames = hasattr(model, "kind") and sees(model) == "frames"
        source = _of_folder(where, frames) if stage is None else _of_run(where, stage, chosen, frames)
        audits = []
        for task in dict.fromkeys(e.environment for e in source.episodes):
            some = [e for e in source.episodes if e.environment == task]
            on = title_of(task) or some[0].instruction
            if hasattr(model, "in_layout"):
                layout = layout_of(task) if task in registered() else {}
                model = model.in_layout(layout, task or "these episodes")
            if hasattr(model, "kind"):
                shown = [
                    d for d in source.demonstrations if d.environment == task and (d.frames is not None or not frames)
                ]
                audits.append(
                    audit_progress(
                        model,
                        some,
                        accumulator=accumulator,
                        demonstrations=() if model.kind == "terminal" else shown,
                        every=source.every,
                        name=name,
                        on=on,
                    )
                )
            else:
                audits.append(audit_reward(model, some, name=name, on=on))
    return audits


def episodes_of(run: Path, rebuild: Rebuild, chosen: Chosen) -> Sequence[Any]:
    """Episodes of a run's best policy."""
    if not (run / "config.json").is_file():
        raise UsageError(f"{run} is no run")
    with ExitStack() as stack:
        return _of_run(run, _opener(rebuild, stack)(run), chosen, False).episodes


def demonstrations_of(run: Path) -> dict[str, list[Any]]:
    """The demonstrations that a run began with, per environment."""
    from .trainers.runs import checkpoint
    from .vla.setting import demonstrations_in

    if not (run / "start").exists():
        raise UsageError(f"{run} is no run that began with demonstrations")
    return demonstrations_in(checkpoint.load(run / "start"))


def _opener(rebuild: Rebuild, stack: ExitStack) -> Callable[[Path], Any]:
    """A run's stage with its best weights, made once and closed with the stack."""
    from .trainers.runs.run_folder import RunFolder

    known: dict[Path, Any] = {}

    def open_run(path: Path) -> Any:
        path = path.resolve()
        if path not in known:
            folder = RunFolder.open(path)
            state = folder.load_checkpoint("best")
            experiment = stack.enter_context(closing(rebuild(folder)))
            known[path] = stage = experiment.stages[int(state["stage"])]
            for learner, each in stage.learners.items():
                each.load_state_dict(state["now"][learner])
        return known[path]

    return open_run


def _model(name: str, stage: Any, open_run: Callable[[Path], Any]) -> tuple[Any, Any]:
    """A model by its name, and the accumulator that it came with, if it did."""
    if name in OF_A_RUN:
        if stage is None:
            raise UsageError(f'"{name}" is that of a run: give a run folder as --episodes, or as the model')
        return _part(stage, name)
    if (Path(name) / "config.json").is_file():
        return _part(open_run(Path(name)), "critic")
    kind, _, weights = name.partition("=")
    if is_place(name) or name in table("reward"):
        model = imported(name) if is_place(name) else named("reward", name)
    else:
        model = named("progress", kind, also=OF_A_RUN)
    if isinstance(model, type):
        model = model(weights) if weights and not is_place(name) else model()
    if not callable(model):
        raise UsageError(f'"{name}" is a {type(model).__name__}, neither a progress model nor a reward function')
    return model, None


def _part(stage: Any, which: str) -> tuple[Any, Any]:
    holder = stage.gate.judge if which == "judge" and stage.gate is not None else None
    holder = getattr(stage.actor, "estimator", None) if which == "critic" else holder
    if holder is None or not hasattr(holder, "model"):
        raise UsageError(f"the run has no {which} of progress")
    return holder.model, holder.accumulator


class Silent:
    """An estimator that ends nothing: with one on board, episodes go on after they succeed, so length tells nothing."""

    def begin(self, instructions: Sequence[str]) -> None: ...

    def update(self, rows: Any, observations: Any) -> Any:
        return rows < 0

    def values(self, row: int) -> list[float]:
        return []


def _of_run(path: Path, stage: Any, chosen: Chosen, frames: bool) -> Source:
    """Episodes of a run's policy, sampled from states of the split "tune" to the full horizon."""
    from .envs.simulator import View
    from .envs.splits import seeds
    from .recipes import recipe_of
    from .trainers.runs import checkpoint
    from .trainers.runs.run_folder import RunFolder
    from .vla.actor import RobotActor
    from .vla.setting import Setting, demonstrations_in

    actor = stage.actor
    if not isinstance(actor, RobotActor):
        raise UsageError(f"{path} is no run of a robot recipe: give a folder of recorded episodes")
    folder = RunFolder.open(path)
    _, config = recipe_of(folder)
    shown = demonstrations_in(checkpoint.load(path / "start"))
    setting = Setting(config, actor.pool.environments, actor.pool, shown, actor.policy, [])
    tasks = [
        setting.task(name, seed)
        for name in actor.pool.environments
        for seed in seeds("tune", chosen.count, chosen.offset)
    ]
    view = None if not frames else actor.policy.view if actor.policy.sees == "frames" else View()
    estimator, actor.estimator = actor.estimator, Silent()
    try:
        rollouts = actor.act(tasks, 1, key=(0,), oracle=True, render=view)
    finally:
        actor.estimator = estimator
    every = [d for several in shown.values() for d in several]
    return Source([rollout.output for rollout in rollouts], every, actor.pool.chunk)


def _of_folder(path: Path, frames: bool) -> Source:
    from .envs.lerobot_dataset import dataset_at, read_demonstrations

    if not path.is_dir():
        raise UsageError(f"there is no folder {path}: give a run or a folder of recorded episodes")
    pictures = dataset_at(path)[0].cameras
    if frames and not pictures:
        raise UsageError(f"the model sees frames, and {path} holds none")
    return Source(read_demonstrations(path, cameras=pictures[:1] if frames else (), failures=True))
