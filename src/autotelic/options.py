"""Typed options for the command line: tyro reads them, and its errors become one line each."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro

from .errors import UsageError, unknown
from .trainers.config import by_model, fixed, flag, groups_of, runtime
from .trainers.ranges import Count, Whole, check_ranges

T = TypeVar("T")

_RunPath = Annotated[str, tyro.conf.arg(metavar="RUN", help="Folder of the run, such as runs/evolve_vla-1.")]


SYNONYMS = {
    "--learning-rate": "--lr",
    "--num-generations": "--group-size",
    "--max-completion-length": "--max-new-tokens",
    "--per-device-train-batch-size": "--micro-batch-tokens --micro-batch-rows",
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
"""Flags of TRL and LeRobot -> ours, of which a recipe has one."""


@dataclass(frozen=True)
class DoctorOptions:
    """What to look at."""

    gpu: bool = False
    """Measure the GPU, in parts under ten minutes together, instead of looking at what is installed."""
    size: Literal["tiny", "3b", "7b"] = "7b"
    """Of the models that are measured; tiny runs on the CPU too."""
    parts: tuple[str, ...] = ()
    """Of the GPU's parts; all if not given."""
    json: Path = Path("gpu.json")
    """Where the GPU's figures are kept; parts that it has are not repeated."""


@dataclass(frozen=True)
class ListOptions:
    """What to list."""

    kind: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="KIND")] = "recipes"
    """Such as rewards, objectives or environments."""


@dataclass(frozen=True)
class CheckOptions:
    """What to try."""

    what: Annotated[
        str,
        tyro.conf.arg(metavar="FILE", help="FILE.py, FILE.py:NAME, package.module:NAME, FILE.jsonl or an environment."),
    ]
    kind: Literal["auto", "reward", "policy", "recipe"] = "auto"
    """What it is, where that cannot be seen, as of a function that makes a policy."""
    data: Path | None = None
    """Questions for a reward of texts, as JSON lines; sums if not given."""
    environment: str = "metaworld/reach-v3"
    """Where a policy decides, and where episodes for a reward of episodes come from."""
    chunk: Count = 5
    """Environment steps per decision of a policy."""


@dataclass(frozen=True)
class RunOptions:
    """Which run."""

    run: _RunPath


@dataclass(frozen=True)
class ResumeOptions:
    """Which run; ``autotelic resume RUN --help`` shows what else of it may change, such as --save-every."""

    run: _RunPath
    max_steps: str = ""
    """Iterations in all, or +N for so many more; as the run was configured if not given."""


@dataclass(frozen=True)
class ExportOptions:
    """Which weights of a run, and where to."""

    run: _RunPath
    folder: Annotated[Path, tyro.conf.arg(metavar="FOLDER", help="A new folder.")]
    checkpoint: str = "best"
    """Which weights: best, latest or a checkpoint's name."""
    merge: bool = False
    """Write all weights with the adapters in them, rather than the adapters."""


@dataclass(frozen=True)
class EvalOptions:
    """Which weights to evaluate, on which initial states."""

    run: _RunPath
    episodes: Count = 40
    """Episodes per task."""
    offset: Whole = 0
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
    count: Count = 40
    """Episodes per task, where a run's policy acts."""
    offset: Whole = 0
    """How many of the initial states for that to skip."""
    json: Path | None = None
    """Write the figures here."""


@dataclass(frozen=True)
class RecordOptions:
    """Which run's episodes, and where to."""

    run: _RunPath
    folder: Annotated[Path, tyro.conf.arg(metavar="FOLDER", help="A new folder.")]
    episodes: Count = 20
    """Episodes per task."""
    offset: Whole = 0
    """How many of the initial states to skip."""
    frames: Whole = 0
    """Pixels along a side of the pictures; 0 takes none."""
    demonstrations: bool = False
    """Write what the run was shown instead of what its policy does."""
    fps: Whole = 0
    """Environment steps per second of the robot's own time; 0 takes what the environment's spec says."""


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
        if option in vars(kind).get("fixed", ()):
            raise UsageError(f"{option} has no effect in autotelic {command}, whose method fixes it: leave it out")
        if option in vars(kind).get("closed", ()):
            may = ", ".join(name for name in valid if name != "--run")
            raise UsageError(f"{option} is the same all through a run: autotelic {command} changes {may}")
        same = SYNONYMS.get(option.replace("_", "-"), "").split()
        if ours := next((each for each in same if each in valid), None):
            raise UsageError(f'unknown option of autotelic {command} "{option}": it is {ours} here')
        raise unknown(f"option of autotelic {command}", option, valid)
    if left:
        raise UsageError(f'autotelic {command} does not know what to do with "{left[0]}"')
    check_ranges(options)
    return options


class Group:
    """Base of the options of one group, whose flags carry no prefix."""


def run_options(config: Any) -> Any:
    """The options of ``autotelic run``: its own, then a recipe's fields in their groups, whose values are defaults.

    The property ``config`` of what :func:`parse` returns is the recipe's config with what was said.
    """
    where = tyro.conf.arg(help="Folder of the run; the first free runs/NAME-n if not given.")
    use = tyro.conf.arg(help="Plugins to import first: FILE.py or package.module each.")
    dry = tyro.conf.arg(help="Build everything, act and learn one scratch round, print what a round takes, and end.")
    plan = tyro.conf.arg(help="Print what sampling and learning will take, counted without the weights, and end.")
    debug = tyro.conf.arg(help="Start from the preset of two small steps.")
    groups = groups_of(type(config))

    def said(options: Any) -> Any:
        values = {name: getattr(getattr(options, group), name) for group, names in groups.items() for name in names}
        return replace(config, **values)

    kinds = {group: _group(group, names, config) for group, names in groups.items()}
    return make_dataclass(
        "RunOptions",
        [
            ("use", Annotated[tuple[str, ...], use], field(default=())),  # taken out before; here to be shown
            ("output_dir", Annotated[Path | None, where], field(default=None)),
            ("dry_run", Annotated[tyro.conf.FlagCreatePairsOff[bool], dry], field(default=False)),
            ("plan", Annotated[tyro.conf.FlagCreatePairsOff[bool], plan], field(default=False)),
            ("debug", Annotated[tyro.conf.FlagCreatePairsOff[bool], debug], field(default=False)),
            *((group, kind, field(default=kind())) for group, kind in kinds.items()),
        ],
        frozen=True,
        namespace={"config": property(said), "fixed": frozenset(map(flag, fixed(type(config))))},
    )


def resume_options(config: Any) -> Any:
    """The options of ``autotelic resume`` for a run of this config: how many rounds, and what changes no step.

    The property ``changes`` of what :func:`parse` returns is what was said of the latter.
    """
    open_fields = runtime(type(config))
    names = [name for several in groups_of(type(config)).values() for name in several]
    kind = _group("runtime", [name for name in names if name in open_fields], config)

    def said(options: Any) -> dict[str, Any]:
        values = {each.name: getattr(options.runtime, each.name) for each in fields(options.runtime)}
        replace(config, **values)  # which refuses what is out of range
        return {name: value for name, value in values.items() if value != getattr(config, name)}

    told = tyro.conf.arg(help=help_of(ResumeOptions, "max_steps"))
    return make_dataclass(
        "ResumeOptions",
        [
            ("run", _RunPath),
            ("max_steps", Annotated[str, told], field(default="")),
            ("runtime", kind, field(default=kind())),
        ],
        frozen=True,
        namespace={"changes": property(said), "closed": frozenset(map(flag, names)), "__doc__": "Which run."},
    )


def _group(group: str, names: Sequence[str], config: Any) -> Any:
    """Some fields of a config as a dataclass of their own, with the config's values as defaults."""
    hints = get_type_hints(type(config), include_extras=True)
    columns = []
    for name in names:
        default = getattr(config, name)
        kind = hints[name] if default is not None else hints[name] | None
        told = tyro.conf.arg(prefix_name=False, help=help_of(type(config), name))
        columns.append((name, Annotated[kind, told], field(default=default)))
    return make_dataclass(group, columns, bases=(Group,), frozen=True)


def help_of(kind: type, name: str) -> str:
    """The docstring of a dataclass's field, of the latest class that has one, and what its None stands for."""
    told = next((text for each in kind.__mro__ if is_dataclass(each) and (text := _docstring(each, name))), "")
    filled = by_model(kind, name)
    return f"{told} None: {filled}." if filled else told


def _docstring(kind: type, name: str) -> str:
    """What stands under a field in the class's own body."""
    if name not in vars(kind).get("__annotations__", {}):
        return ""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    for line, after in zip(body.body, body.body[1:], strict=False):
        named = isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.target.id == name
        if named and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            return " ".join(str(after.value.value).split())
    return ""


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
    """Every option of a dataclass; a group's stand without a prefix."""
    for each in fields(kind):
        if isinstance(each.default, Group):
            yield from _names(each.default, prefix)
        elif is_dataclass(each.default):
            yield from _names(each.default, f"{prefix}{each.name}.".replace("_", "-"))
        else:
            yield f"{prefix}{each.name}".replace("_", "-")
