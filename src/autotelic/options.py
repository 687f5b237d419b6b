"""Typed options for the command line: tyro reads them, and its errors become one line each."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from .errors import UsageError, unknown

T = TypeVar("T")

_RunPath = Annotated[str, tyro.conf.arg(metavar="RUN", help="Folder of the run, such as runs/evolve_vla-1.")]


SYNONYMS = {
    "--learning-rate": "--lr",
    "--num-generations": "--group-size",
    "--max-completion-length": "--max-new-tokens",
    "--per-device-train-batch-size": "--micro-batch-size",
    "--num-train-epochs": "--epochs",
    "--num-iterations": "--epochs",
    "--beta": "--kl-coef",
    "--lr-scheduler-type": "--lr-schedule",
    "--model-name-or-path": "--model",
    "--dataset-name": "--data",
    "--reward-funcs": "--rewards",
    "--save-steps": "--save-every",
    "--eval-steps": "--eval-every",
    "--steps": "--max-steps",
    "--use-peft": "--lora-rank",
    "--lora-r": "--lora-rank",
    "--env": "--tasks",
}
"""Flags of TRL and LeRobot -> ours."""


@dataclass(frozen=True)
class NoOptions:
    """This command has no options."""


@dataclass(frozen=True)
class ListOptions:
    """What to list."""

    kind: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="KIND")] = "recipes"
    """Such as rewards, objectives or environments."""


@dataclass(frozen=True)
class CheckOptions:
    """What to try."""

    what: Annotated[
        str, tyro.conf.arg(metavar="FILE", help="FILE.py, FILE.py:NAME, package.module:NAME or FILE.jsonl.")
    ]
    kind: Literal["auto", "reward", "policy", "recipe"] = "auto"
    """What it is, where that cannot be seen, as of a function that makes a policy."""
    data: Path | None = None
    """Questions for a reward of texts, as JSON lines; sums if not given."""
    environment: str = "metaworld/reach-v3"
    """Where a policy decides, and where episodes for a reward of episodes come from."""
    chunk: int = 5
    """Environment steps per decision of a policy."""


@dataclass(frozen=True)
class RunOptions:
    """Which run."""

    run: _RunPath


@dataclass(frozen=True)
class EvalOptions:
    """Which weights to evaluate, on which initial states."""

    run: _RunPath
    episodes: int = 40
    """Episodes per task."""
    offset: int = 0
    """How many of the evaluation's initial states to skip, to try states that no evaluation used yet."""
    checkpoint: Literal["best", "latest"] = "best"
    """Which weights."""


@dataclass(frozen=True)
class AuditOptions:
    """Which reward or progress model to audit, on which episodes."""

    model: Annotated[str, tyro.conf.arg(metavar="MODEL", help="A run's folder, a name, or module:object.")]
    episodes: Path | None = None
    """A run, whose policy then acts, or a folder of recorded episodes; without it a run's own reward is audited on
    its evaluations."""
    count: int = 40
    """Episodes per task, where a run's policy acts."""
    offset: int = 0
    """How many of the initial states for that to skip."""
    record: Path | None = None
    """A new folder to keep a run's episodes in."""
    json: Path | None = None
    """Write the figures here."""


@dataclass(frozen=True)
class RecordOptions:
    """Which run's episodes, and where to."""

    run: _RunPath
    folder: Annotated[Path, tyro.conf.arg(metavar="FOLDER", help="A new folder.")]
    episodes: int = 20
    """Episodes per task."""
    offset: int = 0
    """How many of the initial states to skip."""
    frames: int = 0
    """Pixels along a side of the pictures; 0 takes none."""
    demonstrations: bool = False
    """Write what the run was shown instead of what its policy does."""
    fps: int = 0
    """Environment steps per second of the robot's own time; 0 takes MetaWorld's 80, other robots have to say."""


def parse(kind: type[T], words: Sequence[str], command: str) -> T:
    """An instance of a dataclass from the words after a command.

    Fields without a default are positional. ``--help`` prints the fields with their docstrings and
    raises SystemExit(0). Bad input raises UsageError, with the nearest names for an unknown option.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options, left = tyro.cli(
                kind,
                args=words,
                prog=f"autotelic {command}",
                return_unknown_args=True,
                config=(tyro.conf.PositionalRequiredArgs,),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise UsageError(_first_paragraph(said.getvalue())) from None
    if left and left[0].startswith("-"):
        option, valid = left[0].partition("=")[0], list(_names(kind))
        if (ours := SYNONYMS.get(option.replace("_", "-"))) in valid:
            raise UsageError(f'unknown option of autotelic {command} "{option}": it is {ours} here')
        raise unknown(f"option of autotelic {command}", option, valid)
    if left:
        raise UsageError(f'autotelic {command} does not know what to do with "{left[0]}"')
    return options


def run_options(config: Any) -> Any:
    """The options of ``autotelic run``: its own, then every field of a recipe's config, whose values are defaults."""
    where = tyro.conf.arg(help="Folder of the run; the first free runs/NAME-n if not given.")
    debug = tyro.conf.arg(help="Start from the preset of two small steps.")
    return make_dataclass(
        "RunOptions",
        [
            ("output_dir", Annotated[Path | None, where], field(default=None)),
            ("debug", Annotated[tyro.conf.FlagCreatePairsOff[bool], debug], field(default=False)),
            ("config", Annotated[type(config), tyro.conf.arg(name="")], field(default=config)),
        ],
        frozen=True,
    )


def _first_paragraph(box: str) -> str:
    """What tyro says in a box, as one line and without the help below it."""
    text: list[str] = []
    for line in box.strip().splitlines()[1:]:
        inside = line.strip("│ ")
        if set(inside) <= set("─╰╯"):
            break
        text.append(inside)
    return " ".join(text)


def _names(kind: Any, prefix: str = "--") -> Iterator[str]:
    """Every option of a dataclass; the fields of a recipe's config stand without a prefix."""
    for each in fields(kind):
        if is_dataclass(each.default):
            whole = each.name == "config" and prefix == "--"
            yield from _names(each.default, prefix if whole else f"{prefix}{each.name}.".replace("_", "-"))
        else:
            yield f"{prefix}{each.name}".replace("_", "-")
