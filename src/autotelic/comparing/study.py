"""A comparison: its plan, written before the runs; the runs; and the document of what they show."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UsageError, unknown
from ..json_files import read_object
from ..sweep import MEAN, Job, Results, Sweep, dump, in_processes, measures, start_fields, words_of
from ..trainers.config import fixed
from .arms import Flags, require_comparable
from .budget import ROUNDS, SEED, Budget, Cost, calibrate, common_start
from .contrasts import Pair, by_category, contrasts, curve, fronts

STEPS = "max_steps"
SAME = 1e-6
"""Weights of two arms that differ by less than this share of their norm are called equal."""


@dataclass(frozen=True)
class Comparison:
    """Arms times seeds, what they may spend, and what is claimed of them.

    Attributes:
        arms: name -> flags as fields of the recipe's config, "recipe" among them.
        seeds: each gives every arm one run.
        budget: what every run may spend.
        folder: where plan, runs and results are, or will be.
        primary: (better, than) each, the one family of tests that is corrected; empty is every other arm against the
            first.
        measures: what is compared; the first is the outcome of the fronts.
        jobs: runs at a time, in processes of their own if there is more than one.
        debug: set out from the recipes' debug presets.
        common: refuse arms that do not set out from one start; otherwise such arms are compared in what they changed.
        use: plugins that every process imports.
    """

    arms: Mapping[str, Flags]
    seeds: Sequence[int]
    budget: Budget
    folder: Path
    primary: Sequence[Pair] = ()
    measures: Sequence[str] = (MEAN,)
    jobs: int = 1
    debug: bool = False
    common: bool = True
    use: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.arms) < 2:
            raise UsageError("a comparison needs two arms: RECIPE RECIPE, or RECIPE RECIPE:FLAGS")
        for arm in (arm for pair in self.primary for arm in pair):
            if arm not in self.arms:
                raise unknown("arm", arm, self.arms)
        for better, than in self.primary:
            if better == than or (than, better) in self.primary:
                raise UsageError(f'the contrast "{better}>{than}" cannot be shown: leave it out')

    @property
    def pairs(self) -> list[Pair]:
        """The primary contrasts."""
        first, *others = self.arms
        return list(self.primary) or [(arm, first) for arm in others]

    @property
    def path(self) -> Path:
        return self.folder / "comparison.json"

    def sweep(self, rounds: Mapping[str, int], seeds: Sequence[int], folder: Path) -> Sweep:
        """The runs, each with the rounds of its arm, where it has some."""
        arms = {arm: {**flags, **({STEPS: rounds[arm]} if arm in rounds else {})} for arm, flags in self.arms.items()}
        return Sweep("", arms, seeds, folder, jobs=self.jobs, debug=self.debug, use=self.use)

    def run(self) -> dict[str, Any]:
        """Plan, unless it stands; make the runs that are not finished; write what they show, and return it.

        Raises:
            UsageError: nothing can be compared so (before anything is run), or the folder holds another comparison.
        """
        from ..trainers.runs.compared import write_page

        plan = self.plan()
        rounds = {arm: entry["rounds"] for arm, entry in plan["arms"].items() if entry["rounds"]}
        sweep = self.sweep(rounds, self.seeds, self.folder)
        if list(self.measures) != [MEAN] and len(self.seeds) > 1:  # a name that is none is told after the first seed
            contrasts(replace(sweep, seeds=self.seeds[:1]).run(), self.pairs, self.measures, common=self.common)
        document = {"plan": plan, **self.shown(sweep, sweep.run(), plan)}
        self.path.write_text(dump(document))
        write_page(document, self.path.with_suffix(".html"))
        return document

    # --- before ---------------------------------------------------------------------------------

    def plan(self) -> dict[str, Any]:
        """What is written down before the seeds run; what stands in the folder already is kept.

        Raises:
            UsageError: the folder's plan is of another comparison.
        """
        asked = self.asked()
        if self.path.exists():
            plan: dict[str, Any] = read_object(self.path, "plan")["plan"]
            for name, value in json.loads(json.dumps(asked)).items():
                if _without_costs(plan.get(name)) != value:
                    raise UsageError(f"{self.path} plans another comparison, with other {name}: choose another folder")
            return plan
        seeds = list(self.seeds)
        jobs = self.sweep({}, seeds, self.folder).jobs_of(seeds[0])
        for job in jobs:
            config = job.config()
            job.check(config)
            if self.budget.kind != "own" and STEPS not in {each.name for each in fields(config)} - fixed(type(config)):
                raise UsageError(f'"{job.arm}" has no --max-steps, so a budget cannot be given to it: --budget own')
        require_comparable(jobs, common=self.common, budgeted=self.budget.kind != "own")
        costs = self.costs() if self.budget.kind in ("seconds", "queries") else {}
        for arm, entry in asked["arms"].items():
            entry["cost"] = asdict(costs[arm]) if arm in costs else None
            entry["rounds"] = self.rounds(arm, costs.get(arm))
        plan = asked | {"written": datetime.now(UTC).isoformat(timespec="seconds"), "versions": _versions()}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path.write_text(dump({"plan": plan}))
        return plan

    def asked(self) -> dict[str, Any]:
        """What makes it this comparison and no other."""
        arms = {
            arm: {"recipe": str(flags["recipe"]), "flags": shlex.join(words_of(_without_recipe(flags)))}
            for arm, flags in self.arms.items()
        }
        return {
            "arms": arms,
            "seeds": list(self.seeds),
            "budget": asdict(self.budget),
            "primary": [list(pair) for pair in self.pairs],
            "measures": list(self.measures),
            "debug": self.debug,
        }

    def rounds(self, arm: str, cost: Cost | None) -> int | None:
        """Rounds that the budget pays an arm for, or fewer that its flags ask for; None leaves it its own."""
        if self.budget.kind == "own":
            return None
        if cost is None and self.budget.amount < 1:
            raise UsageError(f"a budget of {self.budget} is too small for a round")
        paid = int(self.budget.amount) if cost is None else cost.rounds(self.budget, arm)
        own = int(self.arms[arm].get(STEPS, paid))
        if own > paid:
            raise UsageError(f'"{arm}" has --max-steps {own}, of which {self.budget} pay for {paid}: give no more')
        return own

    def costs(self) -> dict[str, Cost]:
        """Every arm's, by a short run on a seed of its own, from a start that was made before."""
        seed = next(seed for seed in range(SEED, SEED + len(self.seeds) + 1) if seed not in self.seeds)
        place = self.folder / "calibration"
        jobs = self.sweep(dict.fromkeys(self.arms, ROUNDS), [seed], place).jobs_of(seed)
        starts: list[tuple[Any, Job]] = []
        which: list[Path] = []
        for job in jobs:
            config = job.config()
            start = [getattr(config, name) for name in start_fields(config)]
            known = next((made for values, made in starts if values == start), None)
            if known is None:
                known = replace(job, path=place / f"start-{len(starts)}", others=())
                starts.append((start, known))
            which.append(known.path)
        runs = [replace(job, others=(path,)) for job, path in zip(jobs, which, strict=True)]
        for job in (*(made for _, made in starts), *runs):
            shutil.rmtree(job.path, ignore_errors=True)  # a calibration that was stopped is made again
        works = [partial(common_start, made) for _, made in starts]
        if self.jobs == 1:
            for work in works:
                work()
            found = [calibrate(job) for job in runs]
        else:
            in_processes(works, self.jobs)
            found = in_processes([partial(calibrate, job) for job in runs], self.jobs)
        return dict(zip(self.arms, found, strict=True))

    # --- after ----------------------------------------------------------------------------------

    def shown(self, sweep: Sweep, results: Results, plan: Mapping[str, Any]) -> dict[str, Any]:
        """What the finished runs show."""
        setup = {arm: (entry["cost"] or {}).get("setup", 0.0) for arm, entry in plan["arms"].items()}
        prices = {
            "divergence": lambda run: run.divergence,
            "cost": lambda run: run.cpu_seconds + setup[run.arm],
        }
        rows = contrasts(results, self.pairs, self.measures, common=self.common)
        return {
            "contrasts": [asdict(row) for row in rows],
            "categories": [asdict(row) for row in by_category(results, self.pairs, common=self.common)],
            "notes": [*notes(results), *equal_weights(sweep, results)],
            "fronts": fronts(results, self.measures[0], prices),
            "curves": curves(sweep, results, self.measures[0]),
            **results.to_json(),
        }


def _versions() -> dict[str, str]:
    from ..trainers.runs.run_folder import versions

    return versions()


def _without_costs(entry: Any) -> Any:
    """A plan's entry as it was asked for."""
    if isinstance(entry, Mapping) and all(isinstance(value, Mapping) for value in entry.values()):
        return {arm: {name: value[name] for name in ("recipe", "flags")} for arm, value in entry.items()}
    return entry


def _without_recipe(flags: Flags) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if name != "recipe"}


# --- what runs show beside contrasts ------------------------------------------------------------


def notes(results: Results) -> list[str]:
    """What a reader has to know: runs that diverged, arms that begin with other outcomes, labels that differ."""
    found = []
    for arm, runs in results.runs.items():
        if ended := sum(bool(run.diverged) for run in runs):
            found.append(f"{arm}: {ended} of {len(runs)} runs diverged; their last good weights are compared")
    first, *others = results.runs
    for arm in others:
        pairs = [(run, results.by_seed(first).get(run.seed)) for run in results.runs[arm]]
        if any(theirs is not None and run.measures("before") != theirs.measures("before") for run, theirs in pairs):
            found.append(f"{arm} and {first} do not begin with the same outcomes")
    labels: dict[str, list[str]] = {}
    for arm, runs in results.runs.items():
        labels.setdefault(runs[0].labels, []).append(arm)
    if len(labels) > 1:
        found.append("label accounts differ: " + "; ".join(f"{', '.join(of)}: {what}" for what, of in labels.items()))
    return found


def equal_weights(sweep: Sweep, results: Results) -> list[str]:
    """Arms that end with equal weights on every seed: what tells them apart has no effect."""
    found: list[str] = []
    arms = list(results.runs)
    for i, arm in enumerate(arms):
        for other in arms[i + 1 :]:
            seeds = [run.seed for run in results.runs[arm] if run.seed in results.by_seed(other)]
            if seeds and all(_equal(sweep.path(arm, seed), sweep.path(other, seed)) for seed in seeds):
                found.append(f'"{arm}" and "{other}" end with equal weights: what tells them apart has no effect here')
    return found


def _equal(one: Path, other: Path) -> bool:
    mine, theirs = _weights(one), _weights(other)
    if mine.keys() != theirs.keys() or any(mine[name].shape != theirs[name].shape for name in mine):
        return False
    apart = sum(float((mine[name].double() - theirs[name].double()).square().sum()) for name in mine)
    size = sum(float(value.double().square().sum()) for value in mine.values())
    return bool(mine) and apart <= SAME**2 * size


def _weights(path: Path) -> dict[str, Any]:
    """The weights of every policy that learned in a run, by name."""
    from ..trainers.runs.run_folder import RunFolder

    def flat(value: Any, name: str) -> dict[str, Any]:
        if isinstance(value, Mapping):
            return {key: each for inner, part in value.items() for key, each in flat(part, f"{name}/{inner}").items()}
        return {name: value} if hasattr(value, "is_floating_point") and value.is_floating_point() else {}

    now = RunFolder.open(path).load_checkpoint("latest")["now"]
    policies = {name: part["policy"] for name, part in now.items() if isinstance(part, Mapping) and "policy" in part}
    return flat(policies, "")


def curves(sweep: Sweep, results: Results, measure: str) -> dict[str, Any]:
    """Over rounds, per arm: the training reward, and the outcome at the evaluations; means over seeds."""
    from ..trainers.runs.curves import along_training
    from ..trainers.runs.run_folder import RunFolder

    found: dict[str, dict[str, Any]] = {"reward": {}, "outcome": {}}
    for arm, runs in results.runs.items():
        folders = [RunFolder.open(sweep.path(arm, run.seed)) for run in runs]
        rewards = [[(row["iteration"], row["reward"]) for row in f.metrics() if "reward" in row] for f in folders]
        looks = [
            [
                (each["iteration"], known[measure])
                for each in along_training(f.evaluations()).values()
                if measure in (known := measures(each))
            ]
            for f in folders
        ]
        found["reward"][arm], found["outcome"][arm] = curve(rewards), curve(looks)
    return found
