"""How a case of strange input is stated and tried.

A case is a function from an empty folder to what comes of the strange input. What must come of it stands beside it:
``gives`` a value, ``refuses`` in one line, or ``goes_on``. One list of cases is a test (tests/test_strangers.py) and a
table of figures (benchmarks/strangers.py).
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autotelic.envs.simulator import Refusal
from autotelic.errors import UsageError
from autotelic.trainers.scoring import RewardError

KINDS = (
    "numbers",  # NaN, infinity, options out of range
    "policy errors",  # what a policy causes is told to it or scored
    "text to ids",  # untrusted text becomes no control token
    "two doors",  # one opener, one verifier, one convention for one thing
    "trl rewards",  # functions written for TRL
    "graders",  # graders that can be fooled
    "sandbox",
    "bytes",  # limits in bytes or tokens
    "data files",
    "cannot learn",  # runs that could never learn anything
    "half finished",  # what is there when a run ends early
    "schedulers",  # schedulers and pipelines
    "drift",  # sampling and learning disagree
    "restore",  # environments restored wrongly
    "environments",  # environments at their edges
    "robot data",
    "first hour",
    "report",
    "processes",  # several processes disagree
)
MODALITIES = ("core", "vlm", "vla", "diffusion")
ENTRY_POINTS = {  # each with the places of it that cases name
    "options": (
        *("option", "flag", "path", "command line", "plugin file", "extra", "notebook", "README", "--debug", "--use"),
        *("--height", "--num-frames", "--num-inference-steps", "--negative-prompt", "--eval-guidance-scale", "--grid"),
    ),
    "data": (
        *("data", "--data", "questions", "prompts", "pairs", "curriculum", "Trainer"),  # files and rows
        *("dataset", "action scale", "layout"),  # of robots
    ),
    "model": (
        *("model", "--model", "LoRA", "--lora-path", "--lora-targets", "--lora-alpha", "--dtype", "stage"),
        *("scheduler", "sampler", "memory line"),
    ),
    "prompt": ("prompt", "blocks", "role"),  # what a policy is asked: questions, instructions, texts to draw
    "picture": ("picture", "opener", "crop"),
    "policy": ("policy", "sampling", "act", "answer", "example"),  # what it writes, does and draws
    "tool": ("tool", "tool call", "reply"),
    "sandbox": ("program",),
    "reward": ("reward", "own reward", "judge", "asking judge", "critic"),
    "environment": ("environment",),
    "server": ("server",),  # one that samples
    "update": ("update", "learner", "fit", "run"),
    "evaluation": ("evaluation", "gate"),
    "checkpoint": ("checkpoint", "save", "resume", "export", "finish"),
    "report": ("report", "terminal", "audit", "metrics", "compare"),
}
_POINTS = {place: point for point, places in ENTRY_POINTS.items() for place in places}
By = Literal["policy", "user", "machine"]
REFUSALS = (UsageError, Refusal, RewardError)


@dataclass(frozen=True)
class Gives:
    """The case returns this value; numbers may differ by rounding."""

    value: object

    def met_by(self, ended: Ended) -> bool:
        return ended.how == "value" and alike(ended.value, self.value)


@dataclass(frozen=True)
class Refuses:
    """The case ends in one line that holds this pattern."""

    pattern: str

    def met_by(self, ended: Ended) -> bool:
        return ended.how == "refused" and re.search(self.pattern, str(ended.value)) is not None


@dataclass(frozen=True)
class GoesOn:
    """The case ends without an error, whatever it returns."""

    def met_by(self, ended: Ended) -> bool:
        return ended.how == "value"


Required = Gives | Refuses | GoesOn


@dataclass(frozen=True)
class Ended:
    """How a case ended: with a value, refused in a line, with a traceback, or not tried for a reason."""

    how: Literal["value", "refused", "traceback", "skipped"]
    value: object


@dataclass(frozen=True)
class Case:
    """One strange input.

    Attributes:
        name: place in a list of reports and what it is about, such as "vlm A8: a thousand brackets in a tool call".
        kind, modality: of ``KINDS`` and ``MODALITIES``; "core" is what the modalities share.
        entry: the place where it enters, of those of ``ENTRY_POINTS``, such as "own reward" or "tool call".
        required: what must come of it.
        by: who caused it; nothing that a policy causes may end a run.
        act: the case; gets an empty folder.
        slow: seconds and more: tried by the benchmark alone.
        needs: modules without which it is skipped.
        waits: not repaired yet; the test then asserts that it still fails, so that the mark goes with the repair.
    """

    name: str
    kind: str
    modality: str
    entry: str
    required: Required
    by: By
    act: Callable[[Path], object]
    slow: bool = False
    needs: tuple[str, ...] = ()
    waits: bool = False

    @property
    def entry_point(self) -> str:
        return _POINTS[self.entry]

    def run(self, folder: Path) -> Ended:
        if missing := [name for name in self.needs if importlib.util.find_spec(name) is None]:
            return Ended("skipped", f"{missing[0]} is not installed")
        try:
            return Ended("value", self.act(folder))
        except REFUSALS as error:
            return Ended("refused", str(error))
        except Skipped as reason:
            return Ended("skipped", str(reason))
        except Exception as error:
            return Ended("traceback", f"{type(error).__name__}: {error}")

    def verdict(self, ended: Ended) -> str:
        """One of: right, skipped, traceback, wrongly_refused, wrong_silent."""
        if ended.how == "skipped":
            return "skipped"
        if self.required.met_by(ended):
            return "right"
        return {"traceback": "traceback", "refused": "wrongly_refused", "value": "wrong_silent"}[ended.how]


class Skipped(Exception):
    """A case that cannot be tried on this machine, for a reason."""


_cases: dict[str, Case] = {}


def case(
    name: str,
    *,
    kind: str,
    modality: str,
    entry: str,
    required: Required,
    by: By,
    slow: bool = False,
    needs: Sequence[str] = (),
    waits: bool = False,
) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """State a case; the arguments are those of ``Case``."""
    assert kind in KINDS and modality in MODALITIES and name not in _cases, f"{name}: {kind}, {modality}"
    assert entry in _POINTS, f"{name}: {entry} is a place of no entry point"

    def state(act: Callable[[Path], object]) -> Callable[[Path], object]:
        _cases[name] = Case(name, kind, modality, entry, required, by, act, slow, tuple(needs), waits)
        return act

    return state


def all_cases() -> list[Case]:
    """Every case of the modules beside this one, in the order in which they stand there."""
    package = importlib.import_module("tests.strangers")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"tests.strangers.{module.name}")
    return list(_cases.values())


def autotelic(*words: object, folder: Path, timeout: float = 600, **environment: str) -> str:
    """What the command prints, run in a folder. Raises UsageError for its one-line refusals, else RuntimeError."""
    return program([sys.executable, "-m", "autotelic", *map(str, words)], folder, timeout, environment)


def python(script: str, *words: object, folder: Path, timeout: float = 600, **environment: str) -> str:
    """What a script prints, run in a process of its own in a folder; raises as ``autotelic`` does."""
    return program([sys.executable, "-c", script, *map(str, words)], folder, timeout, environment)


def program(command: Sequence[str], folder: Path, timeout: float, environment: dict[str, str]) -> str:
    outside = {name: value for name, value in os.environ.items() if environment.get(name) != ""}
    inside = {name: value for name, value in environment.items() if value}
    done = subprocess.run(
        command, cwd=folder, env={**outside, **inside}, capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode == 0:
        return done.stdout + done.stderr
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
    if "Traceback" not in done.stderr and last.startswith("autotelic: "):
        raise UsageError(last.removeprefix("autotelic: "))
    raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")


def alike(seen: Any, wanted: Any) -> bool:
    """Whether two values are equal, floats within 1e-4 of each other; NaN is NaN."""
    if isinstance(wanted, Mapping):
        same = isinstance(seen, Mapping) and seen.keys() == wanted.keys()
        return same and all(alike(seen[name], value) for name, value in wanted.items())
    if isinstance(wanted, float) or (isinstance(seen, float) and isinstance(wanted, int)):
        try:
            number = float(seen)
        except (TypeError, ValueError):
            return False
        nothing = math.isnan(number) and math.isnan(wanted)
        return nothing or math.isclose(number, wanted, rel_tol=1e-4, abs_tol=1e-6)
    if isinstance(wanted, (list, tuple)):
        same = isinstance(seen, Iterable) and not isinstance(seen, str)
        rows = list(seen) if same else []
        return same and len(rows) == len(wanted) and all(alike(a, b) for a, b in zip(rows, wanted, strict=True))
    return bool(seen == wanted)
