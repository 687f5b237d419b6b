"""Sweeps: arms of a recipe times seeds, paired by seed from one start, compared over seeds.

::

    FOLDER/ARM-SEED/     a run folder each, as ``autotelic run`` writes it
    FOLDER/sweep.json    ``Results.to_json`` of the finished ones

A sweep that was stopped goes on where it stood: finished runs are read, half-finished ones resumed. Every run has one
thread, so that ``jobs`` changes no result. Arms of one seed share their start: default models stand in the cache, and
the folder ``start`` of a run, where a recipe writes one, is copied to every arm whose config has the same values in the
fields that it names as ``start_fields``.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from .errors import UsageError, unknown
from .options import parse, run_options
from .recipes import Recipe, config_from_json, find_recipe
from .trainers.ranges import Count, check_ranges

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
    """

    arm: str
    seed: int
    recipe: Recipe
    words: tuple[str, ...]
    debug: bool
    path: Path
    others: tuple[Path, ...] = ()

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
        import torch

        from .trainers.loop import Diverged, train
        from .trainers.runs.report import write_report

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            folder = self._folder()
            with closing(self._build(folder)) as experiment, suppress(Diverged):  # config.json says so
                train(experiment, folder, resume=bool(folder.checkpoints()))
            attempts = [s.tasks_per_step * s.group_size for s in experiment.stages for _ in range(s.steps)]
            folder.describe(rollouts=sum(attempts[: len(folder.metrics())]))
            write_report(folder)
        finally:
            torch.set_num_threads(threads)

    def _folder(self) -> Any:
        """The run's folder, with a start in it if another arm has made it."""
        from .trainers.runs.run_folder import RunFolder

        config, command = self.config(), ["autotelic", "run", self.recipe.name, *self.words]
        if not (self.path / "config.json").exists():
            command += ["--debug"] if self.debug else []
            RunFolder.create(self.path, recipe=self.recipe.name, config=asdict(config), command=shlex.join(command))
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

    def _build(self, folder: Any) -> Any:
        try:
            return self.recipe.load().build(self.config(), folder)
        except ValueError as error:
            if not folder.checkpoints():  # nothing was trained; the flags may be mended
                shutil.rmtree(self.path)
            raise UsageError(f"{self.arm}, seed {self.seed}: {' '.join(str(error).split())}") from error


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

    @classmethod
    def read(cls, arm: str, seed: int, path: Path) -> Run:
        from .trainers.runs.run_folder import RunFolder

        folder = RunFolder.open(path)
        facts, evaluations = folder.read_json("config"), folder.evaluations()
        cpu = round(sum(row.get("time/cpu", 0.0) for row in folder.metrics()), 1)
        gate = tuple(row["decision"] for row in folder.read("gate"))
        sides = {side: _essential(evaluations[side]) for side in ("before", "after")}
        account = {"rollouts": facts.get("rollouts"), "labels": _labels(facts), "diverged": facts.get("diverged", "")}
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
class Difference:
    """An arm against another in one measure, paired over seeds.

    Attributes:
        of: what is compared: the measure "after", or its "change" where the two did not set out from the same.
        seeds: arm minus base per seed.
        interval: Student's t, 95 %; None with one seed.
        p: two-sided paired t test, Holm-corrected over all differences of one comparison; None with one seed.
    """

    arm: str
    base: str
    measure: str
    of: Literal["after", "change"]
    seeds: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    p: float | None


@dataclass(frozen=True)
class Results:
    """The finished runs of a sweep, by arm, each arm's in the order of their seeds."""

    runs: Mapping[str, Sequence[Run]]

    def compare(self, base: str | Mapping[str, str], measures: Sequence[str] | None = None) -> list[Difference]:
        """Every other arm against a base, paired over the seeds that both have.

        All rows that are returned are one family for Holm's correction: ask for what is to be claimed.

        Args:
            base: an arm, or per arm the one that it is compared with.
            measures: names as in ``measures``; None takes all categories and their mean.

        Raises:
            UsageError: there is no such arm or measure, or two arms share no seed.
        """
        from .statistics import holm, mean_interval, mean_p

        pairs = {arm: base for arm in self.runs if arm != base} if isinstance(base, str) else base
        rows: list[Difference] = []
        for arm, other in pairs.items():
            ours, theirs = (self._by_seed(name) for name in (arm, other))
            seeds = [seed for seed in ours if seed in theirs]
            if not seeds:
                raise UsageError(f'"{arm}" and "{other}" have no seed in common')
            same = all(ours[seed].measures("before") == theirs[seed].measures("before") for seed in seeds)
            a, b = ([_values(runs[seed], same) for seed in seeds] for runs in (ours, theirs))
            common = [name for name in a[0] if all(name in row for row in (*a, *b))]
            for name in [n for n in common if "/" not in n] if measures is None else measures:
                if name not in common:
                    raise unknown("measure", name, common)
                d = [x[name] - y[name] for x, y in zip(a, b, strict=True)]
                several = len(d) > 1
                interval, p = (mean_interval(d), mean_p(d)) if several else (None, None)
                of: Literal["after", "change"] = "after" if same else "change"
                rows.append(Difference(arm, other, name, of, tuple(d), _mean(d), interval, p))
        adjusted = iter(holm([row.p for row in rows if row.p is not None]))
        return [row if row.p is None else replace(row, p=next(adjusted)) for row in rows]

    def _by_seed(self, arm: str) -> dict[int, Run]:
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

    def table(self, measures: Sequence[str] = (MEAN,), differences: Sequence[Difference] = ()) -> str:
        """One line per arm: CPU seconds, means before and after, and differences from its base."""
        width = max(map(len, self.runs)) + 2
        lines = [f"{'arm':{width}}{'cpu s':>8}" + "".join(f"{name:>20}" for name in measures)]
        for arm, runs in self.runs.items():
            summary = self.summary(arm)
            line = f"{arm:{width}}{_mean([run.cpu_seconds for run in runs]):8.0f}"
            for name in measures:
                row = summary.get(name)
                line += f"{row['before']:>11.3g} > {row['after']:<6.3g}" if row else " " * 20
            for d in (d for d in differences if d.arm == arm and d.measure in measures):
                bounds = "" if d.interval is None else " ({:+.3g}..{:+.3g})".format(*d.interval)
                line += f"   {d.measure} {d.mean:+.3g}{bounds} over {d.base}"
            if diverged := sum(bool(run.diverged) for run in runs):
                line += f"   {diverged} of {len(runs)} diverged"
            lines.append(line)
        return "\n".join(lines)


def _values(run: Run, same_start: bool) -> dict[str, float]:
    after = run.measures("after")
    if same_start:
        return after
    before = run.measures("before")
    return {name: value - before[name] for name, value in after.items() if name in before}


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
    """

    recipe: str
    arms: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    folder: Path
    flags: Mapping[str, Any] = field(default_factory=dict)
    jobs: Count = 1
    debug: bool = False

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
            made.append(Job(arm, seed, recipe, tuple(words_of(flags)), self.debug, path, others))
        return made

    def run(self) -> Results:
        """Make all runs that are not finished, and write sweep.json.

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
            _in_processes(first, self.jobs)
            _in_processes(then, self.jobs)
        results = self.results()
        (self.folder / "sweep.json").write_text(dump(results.to_json()))
        return results

    def results(self) -> Results:
        """What is finished, read from the folders."""
        done = [job for seed in self.seeds for job in self.jobs_of(seed) if job.finished]
        runs = {arm: [Run.read(arm, job.seed, job.path) for job in done if job.arm == arm] for arm in self.arms}
        return Results({arm: several for arm, several in runs.items() if several})

    def compare(self, base: str | Mapping[str, str], measures: Sequence[str] | None = None) -> list[Difference]:
        """``Results.compare`` of what is finished."""
        return self.results().compare(base, measures)


def _in_processes(jobs: Sequence[Job], count: int) -> None:
    """Each job in a fresh process, so many at a time; the first failure ends the rest."""
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for done in [pool.submit(job.run) for job in jobs]:
            try:
                done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def dump(document: Mapping[str, Any]) -> str:
    """A document as indented JSON with every list of plain values in one line."""
    text = json.dumps(document, indent=1)
    return re.sub(r"\[[^][{}]*\]", lambda m: " ".join(m[0].split()).replace("[ ", "[").replace(" ]", "]"), text) + "\n"


# --- the command --------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(words: Sequence[str]) -> int:
    """Run arms of a recipe on several seeds, and compare them.

    autotelic sweep RECIPE --arm NAME [FIELD=VALUE …] [--arm …] --seeds 0 1 2: every arm is the recipe with some fields
    changed, "recipe" among them; values with spaces are lists. Run again, it goes on where it stood.
    """
    parser = _Parser(prog="autotelic sweep", description=(main.__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("--arm", nargs="+", action="append", metavar=("NAME", "FIELD=VALUE"), required=True)
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of every arm")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--base", help="the arm that others are compared with; the first if not given")
    parser.add_argument("--measures", nargs="+", help="what is compared; all categories and their mean if not given")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--debug", action="store_true", help="set out from the recipe's preset of two small steps")
    parser.add_argument("--output-dir", type=Path, help="folder of the runs; runs/sweep-RECIPE if not given")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(list(words))
    arms = {name: _flags(pairs) for name, *pairs in options.arm}
    if len(arms) < len(options.arm):
        raise UsageError("two arms of the sweep have the same name: rename one")
    folder = options.output_dir or Path("runs") / f"sweep-{options.recipe.rpartition('/')[2]}"
    shared = {"flags": _flags(options.set), "jobs": options.jobs, "debug": options.debug}
    if options.base not in (None, *arms):
        raise unknown("arm", options.base, arms)
    results = Sweep(options.recipe, arms, options.seeds, folder, **shared).run()
    differences = results.compare(options.base or next(iter(arms)), options.measures)
    print(results.table([MEAN], differences))
    if options.json:
        document = results.to_json() | {"differences": [asdict(each) for each in differences]}
        options.json.write_text(dump(document))
    return 0


def _flags(pairs: Sequence[str]) -> dict[str, Any]:
    """FIELD=VALUE of every pair: "true" and "false" are switches, a value with spaces is a list."""
    flags: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f'"{pair}" is not FIELD=VALUE')
        words = tuple(shlex.split(value))
        flags[name] = words if len(words) != 1 else {"true": True, "false": False}.get(words[0], words[0])
    return flags
