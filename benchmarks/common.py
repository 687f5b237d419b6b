"""What the scripts of this folder share: their options and records, comparisons as scripts, and races of steps."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from autotelic.comparing.budget import Budget
from autotelic.comparing.study import STEPS, Comparison
from autotelic.errors import UsageError
from autotelic.recipes import find_recipe
from autotelic.sweep import MEAN, Results, Sweep, dump
from autotelic.trainers.config import fixed

ROOT = Path(__file__).parents[1]
Flags = Mapping[str, Any]
Step = Callable[[], Mapping[str, float]]


# --- every script -------------------------------------------------------------------------------


def parser_of(doc: str | None, quick: str) -> argparse.ArgumentParser:
    """The options of every script: --quick (what it leaves out) and --json FILE."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"about a minute: {quick}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser


def git(*words: str) -> str:
    """What git answers in this repository. Raises CalledProcessError, and FileNotFoundError without git."""
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def provenance() -> dict[str, Any]:
    """Where figures come from: command, commit ("+" where files differ from it), machine, versions."""
    from autotelic.trainers.runs.run_folder import versions

    try:
        commit = git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return {"command": command, "commit": commit, "machine": platform.machine(), "versions": versions()}


def save(options: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    """Write figures with their provenance, if a file was given."""
    if options.json:
        options.json.write_text(dump(provenance() | {"quick": options.quick} | dict(figures)))


# --- studies ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """A comparison as a script.

    Attributes:
        recipe: of every arm that names no other.
        arms: flags by name, as fields of the recipe's config, "recipe" among them.
        seeds, measures: as in ``Comparison``.
        base: the arm that every other is compared with, or pairs (better, than): the claims, written down before any
            seed runs. What this call leaves out is not compared.
        quick, quick_arms: flags that make a run end in seconds, and the arms that --quick takes, on the first seed.
        budget: as ``autotelic compare --budget`` takes it; --quick takes two rounds.
        flags: of every arm; its own win.
        common: whether arms set out from one start; otherwise they are compared in what they changed.
        further: figures of the script's own, from the runs and their results.
    """

    recipe: str
    arms: Mapping[str, Flags]
    seeds: Sequence[int]
    base: str | Sequence[tuple[str, str]]
    quick: Flags
    quick_arms: Sequence[str]
    budget: str = "own"
    flags: Flags = field(default_factory=dict)
    measures: Sequence[str] = (MEAN,)
    common: bool = True
    further: Callable[[Sweep, Results], Mapping[str, Any]] = lambda sweep, results: {}

    def main(self, doc: str | None) -> None:
        from autotelic.trainers.runs.compared import table_of

        parser = parser_of(doc, f"{' and '.join(self.quick_arms)} on one seed, with little of all")
        where = Path("runs") / Path(sys.argv[0]).stem
        parser.add_argument("--runs", type=Path, help=f"keep the runs here; {where} if not given, nowhere if --quick")
        parser.add_argument("--seeds", type=int, nargs="+", default=list(self.seeds))
        parser.add_argument("--arms", nargs="+", choices=list(self.arms), default=list(self.arms))
        parser.add_argument("--budget", default=self.budget, help="of each run; %(default)s if not given")
        parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
        options = parser.parse_args()
        with tempfile.TemporaryDirectory() as scratch:
            runs = options.runs or (Path(scratch) if options.quick else where)
            try:
                comparison = self.comparison(options, runs)
                document = comparison.run()
            except UsageError as error:
                raise SystemExit(f"{Path(sys.argv[0]).name}: {error}") from error
            further = self.further(comparison.sweep({}, comparison.seeds, runs), Results.from_json(document))
        print(table_of(document))
        save(options, {**document, **further})

    def comparison(self, options: argparse.Namespace, runs: Path) -> Comparison:
        """What the options ask for."""
        names = [arm for arm in self.arms if arm in (self.quick_arms if options.quick else options.arms)]
        everyone = self.base if not isinstance(self.base, str) else [(arm, self.base) for arm in self.arms]
        pairs = [(one, other) for one, other in everyone if one in names and other in names and one != other]
        return Comparison(
            {name: self.flags_of(name, options.quick) for name in names},
            options.seeds[:1] if options.quick else options.seeds,
            Budget.of("2steps" if options.quick and self.budget != "own" else options.budget),
            runs,
            primary=pairs,
            measures=self.measures,
            jobs=options.jobs,
            common=self.common,
        )

    def flags_of(self, arm: str, quick: bool) -> Flags:
        """An arm's flags; the quick ones without what its recipe fixes, or the budget decides."""
        flags = {"recipe": self.recipe, **self.flags, **self.arms[arm]}
        closed = {*fixed(find_recipe(flags["recipe"]).load().Config), *([STEPS] if self.budget != "own" else [])}
        return flags | {name: value for name, value in self.quick.items() if quick and name not in closed}


# --- races of steps -----------------------------------------------------------------------------


class Worker:
    """A process that makes one step per line of settings, and answers by a line of what it cost."""

    def __init__(self, command: Sequence[str]) -> None:
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process: subprocess.Popen[str] = subprocess.Popen(command, text=True, **streams)  # type: ignore[call-overload]
        self._answer()

    def step(self, settings: Mapping[str, Any]) -> dict[str, float]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(settings) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, float] = json.loads(line)
                return answer
        raise SystemExit(f"no answer from {self.process.args!r}")

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def measured(step: Callable[[Any], Mapping[str, float]], settings: Any) -> dict[str, float]:
    """CPU and wall seconds of one step, and what else it says of itself."""
    cpu, wall = time.process_time(), time.perf_counter()
    further = step(settings)
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, **further}


def race(steps: Mapping[str, Step], rounds: int, warm: int = 0) -> dict[str, list[dict[str, float]]]:
    """What every contestant's step cost, round by round in an order that turns; ``warm`` of each are not counted."""
    costs: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    names = list(steps)
    for _ in range(warm):
        for step in steps.values():
            step()
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            costs[name].append(dict(steps[name]()))
        last = {name: round(rows[-1]["cpu"], 3) for name, rows in costs.items()}
        print(f"round {turn + 1} of {rounds}, CPU seconds: {last}", file=sys.stderr, flush=True)
    return costs


def ratio(above: list[dict[str, float]], below: list[dict[str, float]], unit: str = "cpu") -> dict[str, float]:
    """Median, lowest and highest of the rounds' ratios."""
    values = [a[unit] / b[unit] for a, b in zip(above, below, strict=True)]
    return {"median": round(median(values), 3), "low": round(min(values), 3), "high": round(max(values), 3)}
