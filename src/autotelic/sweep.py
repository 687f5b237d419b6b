"""Sweeps: arms of recipes times seeds, paired by seed from one start; ``comparing`` says what they show.

::

    FOLDER/ARM-SEED/     a run folder each, as ``autotelic run`` writes it

A sweep that was stopped goes on where it stood: finished runs are read, half-finished ones resumed. Every run has one
thread, so that ``jobs`` changes no result. Arms of one seed share their start: default models stand in the cache, and
the folder ``start`` of a run, where a recipe writes one, is copied to every arm whose config has the same values in the
fields that it names as ``start_fields``.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from .errors import UsageError, unknown
from .gl import use_before_gl
from .options import parse, run_options
from .recipes import Recipe, config_from_json, find_recipe
from .trainers.ranges import Count, check_ranges

T = TypeVar("T")
START = "start"
"""Where a recipe keeps what a run sets out from, in the run's folder; written atomically."""

MEAN = "mean"
"""The unweighted mean over categories, among an evaluation's measures."""


def words_of(flags: Mapping[str, Any]) -> list[str]:
    """Flags as the command line takes them: {"lr": 1e-4, "tasks": ("a", "b"), "decay": False}."""
    words: list[str] = []
    for name, value in flags.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return words


@dataclass(frozen=True)
class Job:
    """One run to be made: what a process needs to know of it.

    Attributes:
        words: flags after the recipe's name.
        others: folders of the same seed, whose start may be this run's as well.
        use: plugins that its process imports first.
    """

    arm: str
    seed: int
    recipe: Recipe
    words: tuple[str, ...]
    debug: bool
    path: Path
    others: tuple[Path, ...] = ()
    use: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        return (self.path / "evaluations" / "after.json").exists() and (self.path / "report.html").exists()

    def config(self) -> Any:
        """The recipe's config with the flags. Raises UsageError for an unknown one, with the nearest names."""
        module = self.recipe.load()
        config = module.Config.tiny() if self.debug else module.Config()
        return parse(run_options(config), self.words, f"run {self.recipe.name}").config

    def run(self) -> None:
        """Make the run or go on with it, as ``autotelic run`` and ``autotelic resume`` do."""
        from .trainers.drift import far_from
        from .trainers.loop import Diverged, train
        from .trainers.runs.report import write_report

        with self.alone():
            folder = self.made()
            with closing(self.build(folder)) as experiment:
                last = experiment.stages[-1]
                start = last.actor.bare().fork("start")
                with suppress(Diverged):  # config.json says so
                    train(experiment, folder, resume=bool(folder.checkpoints()))
                folder.describe(divergence=far_from(start, last, experiment.seed))
            folder.describe(rollouts=attempts(experiment.stages, folder.metrics()))
            write_report(folder)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """With its plugins, in one thread."""
        import torch

        use_before_gl(self.use)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def made(self) -> Any:
        """The run's folder, with a start in it if another arm has made it."""
        from .trainers.runs.run_folder import RunFolder

        config, command = self.config(), ["autotelic", "run", self.recipe.name, *self.words]
        if not (self.path / "config.json").exists():
            command += ["--debug"] if self.debug else []
            made = RunFolder.create(
                self.path, recipe=self.recipe.name, config=asdict(config), command=shlex.join(command)
            )
            if self.use:
                made.describe(use=list(self.use))
        folder = RunFolder.open(self.path)
        fields = start_fields(config)
        for path in self.others if fields and not (self.path / START).exists() else ():
            if (path / START).exists():
                theirs = RunFolder.open(path).config
                if all(name in theirs and theirs[name] == folder.config[name] for name in fields):
                    partial = self.path / f".{START}.partial"
                    shutil.rmtree(partial, ignore_errors=True)
                    shutil.copytree(path / START, partial)
                    os.rename(partial, self.path / START)
                    break
        return folder

    def check(self, config: Any) -> None:
        """Raise UsageError if a flag names what is not there, or the folder holds another run."""
        from .preflight import check
        from .trainers.runs.run_folder import RunFolder

        check(config)
        if not (self.path / "config.json").exists():
            return
        folder = RunFolder.open(self.path)
        same = folder.recipe == self.recipe.name
        if same:
            theirs = config_from_json(type(config), folder.config)
            words = [word for word in shlex.split(folder.command)[3:] if word != "--debug"]
            asked = replace(self, words=tuple(words)).config()
            filled = {f.name: getattr(theirs, f.name) for f in fields(asked) if getattr(asked, f.name) is None}
            same = asked == config and replace(config, **filled) == theirs  # a run writes its defaults by model down
        if not same:
            raise UsageError(f"{self.path} holds a run with other flags: remove it or choose another folder")

    def build(self, folder: Any) -> Any:
        """The run's experiment. Raises UsageError, with the arm and the seed, where the recipe refuses its flags."""
        try:
            return self.recipe.load().build(self.config(), folder)
        except ValueError as error:
            if not folder.checkpoints():  # nothing was trained; the flags may be mended
                shutil.rmtree(self.path)
            raise UsageError(f"{self.arm}, seed {self.seed}: {' '.join(str(error).split())}") from error


def attempts(stages: Sequence[Any], metrics: Sequence[Mapping[str, float]]) -> int:
    """Rollouts of the rounds that were done; where groups are filtered and refilled, of every draw."""
    rounds = [stage for stage in stages for _ in range(stage.steps)]
    pairs = zip(rounds, metrics, strict=False)
    return sum(int(row.get("dynamic/drawn", stage.tasks_per_step)) * stage.group_size for stage, row in pairs)


def start_fields(config: Any) -> tuple[str, ...]:
    """Fields of a config that a run's ``start`` folder depends on; a config of one's own need not say."""
    return tuple(getattr(config, "start_fields", ()))


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        before, after: evaluations (see ``trainers.runs.comparison``).
        cpu_seconds: of acting, learning and gating, without start and evaluation.
        rollouts: attempts that the stages asked for; None where the sweep did not make the run itself.
        labels: the run's label account.
        gate: the gate's decisions in their order.
        diverged: what ended it before its last round, where something did; "after" is of its last good weights.
        divergence: nats per attempt that it went from the start (see ``trainers.drift.far_from``); None is unknown.
    """

    arm: str
    seed: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    cpu_seconds: float
    rollouts: int | None
    labels: str
    gate: tuple[str, ...] = ()
    diverged: str = ""
    divergence: float | None = None

    @classmethod
    def read(cls, arm: str, seed: int, path: Path) -> Run:
        from .trainers.runs.run_folder import RunFolder

        folder = RunFolder.open(path)
        facts, evaluations = folder.read_json("config"), folder.evaluations()
        cpu = round(sum(row.get("time/cpu", 0.0) for row in folder.metrics()), 1)
        gate = tuple(row["decision"] for row in folder.read("gate"))
        sides = {side: _essential(evaluations[side]) for side in ("before", "after")}
        account = {"rollouts": facts.get("rollouts"), "labels": _labels(facts), "diverged": facts.get("diverged", "")}
        account["divergence"] = _short(facts.get("divergence"))
        return cls(arm, seed, sides["before"], sides["after"], cpu, gate=gate, **account)

    def measures(self, side: Literal["before", "after"]) -> dict[str, float]:
        """``measures`` of one of the two evaluations."""
        return measures(self.before if side == "before" else self.after)


def measures(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Everything finite in an evaluation by name.

    CATEGORY is its mean outcome, CATEGORY/FIGURE a figure; "mean" and "mean/FIGURE" are unweighted means over
    categories.
    """
    from .trainers.runs.evaluations import known

    outcomes = {name: _mean(row["success"]) for name, row in known(evaluation)["outcomes"].items()}
    found = outcomes | ({MEAN: _mean(list(outcomes.values()))} if outcomes else {})
    named: dict[str, dict[str, float]] = {}
    for category, figures in (evaluation.get("figures") or {}).items():
        for name, value in figures.items():
            if value is not None and math.isfinite(float(value)):
                named.setdefault(name, {})[category] = float(value)
    for name, values in named.items():
        found |= {f"{category}/{name}": value for category, value in values.items()}
        found[f"{MEAN}/{name}"] = _mean(list(values.values()))
    return found


def _labels(facts: Mapping[str, Any]) -> str:
    return str(facts.get("label_account", "")).removeprefix("gate_labels: ")


def _essential(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What comparisons read of an evaluation."""
    outcomes = {
        category: {name: [_short(v) for v in row[name]] for name in ("success", "score") if name in row}
        for category, row in evaluation["outcomes"].items()
    }
    return {"unit": evaluation.get("unit", "outcome"), "outcomes": outcomes, "figures": evaluation.get("figures") or {}}


def _short(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


@dataclass(frozen=True)
class Results:
    """The finished runs of a sweep, by arm, each arm's in the order of their seeds."""

    runs: Mapping[str, Sequence[Run]]

    def by_seed(self, arm: str) -> dict[int, Run]:
        """An arm's runs. Raises UsageError: there is no such arm."""
        if arm not in self.runs:
            raise unknown("arm", arm, self.runs)
        return {run.seed: run for run in self.runs[arm]}

    def summary(self, arm: str) -> dict[str, dict[str, Any]]:
        """Per measure: mean before and after over seeds, and the change with its 95 % interval over seeds."""
        from .statistics import mean_interval

        sides = [(run.measures("before"), run.measures("after")) for run in self.runs[arm]]
        table: dict[str, dict[str, Any]] = {}
        for name in sides[0][1]:
            pairs = [(before[name], after[name]) for before, after in sides if name in before and name in after]
            if len(pairs) == len(sides):
                changes = [after - before for before, after in pairs]
                before, after = (_mean(side) for side in zip(*pairs, strict=True))
                interval = mean_interval(changes) if len(changes) > 1 else None
                table[name] = {"before": before, "after": after, "change": _mean(changes), "interval": interval}
        return table

    def to_json(self) -> dict[str, Any]:
        """Per arm a summary over seeds, and per seed the evaluations before and after and the costs."""
        arms = {
            arm: {"summary": self.summary(arm), "runs": [asdict(run) for run in runs]}
            for arm, runs in self.runs.items()
        }
        return {"arms": arms}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Results:
        """The results again, from what ``to_json`` gave."""
        arms = {arm: [Run(**run) for run in entry["runs"]] for arm, entry in document["arms"].items()}
        return cls({arm: [replace(run, gate=tuple(run.gate)) for run in runs] for arm, runs in arms.items()})


@dataclass(frozen=True)
class Sweep:
    """Arms times seeds of a recipe.

    Attributes:
        recipe: as on the command line; an arm whose flags hold "recipe" runs another one.
        arms: flags by name, as fields of the recipe's config; {} is the recipe as it is.
        seeds: each gives every arm one run.
        folder: where the runs are, or will be.
        flags: of every arm; the arm's own win.
        jobs: runs at a time, in processes of their own if there is more than one.
        debug: set out from the recipes' debug presets.
        use: plugins, FILE.py or package.module each, that every process imports.
    """

    recipe: str
    arms: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    folder: Path
    flags: Mapping[str, Any] = field(default_factory=dict)
    jobs: Count = 1
    debug: bool = False
    use: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_ranges(self)
        paths = [self.path(arm, 0) for arm in self.arms]
        if not self.arms or not self.seeds:
            raise UsageError("a sweep needs an arm and a seed: --arm NAME and --seeds 0 1 2")
        if len(set(paths)) < len(paths) or len(set(self.seeds)) < len(self.seeds):
            raise UsageError("two arms or seeds of the sweep have the same folder: rename one")

    def path(self, arm: str, seed: int) -> Path:
        """The folder of one run."""
        return self.folder / f"{re.sub('[^a-zA-Z0-9_.=]+', '-', arm)}-{seed}"

    def jobs_of(self, seed: int) -> list[Job]:
        """The runs of one seed, arm by arm."""
        made = []
        for arm, own in self.arms.items():
            flags = {**self.flags, **own, "seed": seed}
            recipe, path = find_recipe(str(flags.pop("recipe", self.recipe))), self.path(arm, seed)
            others = tuple(self.path(other, seed) for other in self.arms if other != arm)
            made.append(Job(arm, seed, recipe, tuple(words_of(flags)), self.debug, path, others, self.use))
        return made

    def run(self) -> Results:
        """Make all runs that are not finished, and read all.

        Raises:
            UsageError: a recipe or flag is unknown, before anything is run; a recipe refuses its flags; a folder holds
                something else.
        """
        first: list[Job] = []
        then: list[Job] = []
        for seed in self.seeds:
            starts: list[list[Any]] = []
            for job in self.jobs_of(seed):
                config = job.config()
                job.check(config)
                start = [getattr(config, name) for name in start_fields(config)]
                if not job.finished:
                    (then if start in starts else first).append(job)
                starts.append(start)
        if self.jobs == 1:
            order = {job.path: i for i, seed in enumerate(self.seeds) for job in self.jobs_of(seed)}
            for job in sorted([*first, *then], key=lambda job: order[job.path]):
                job.run()
        else:  # whoever makes a start goes before those who copy it
            in_processes([job.run for job in first], self.jobs)
            in_processes([job.run for job in then], self.jobs)
        return self.results()

    def results(self) -> Results:
        """What is finished, read from the folders."""
        done = [job for seed in self.seeds for job in self.jobs_of(seed) if job.finished]
        runs = {arm: [Run.read(arm, job.seed, job.path) for job in done if job.arm == arm] for arm in self.arms}
        return Results({arm: several for arm, several in runs.items() if several})


def in_processes(works: Sequence[Callable[[], T]], count: int) -> list[T]:
    """What each gives, in a fresh process each, so many at a time; the first failure ends the rest."""
    found: list[T] = []
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for done in [pool.submit(work) for work in works]:
            try:
                found.append(done.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return found


def dump(document: Mapping[str, Any]) -> str:
    """A document as indented JSON with every list of plain values in one line."""
    text = json.dumps(document, indent=1)
    return re.sub(r"\[[^][{}]*\]", lambda m: " ".join(m[0].split()).replace("[ ", "[").replace(" ]", "]"), text) + "\n"
