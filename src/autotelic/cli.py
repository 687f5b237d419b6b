"""The command line: ``autotelic list | run | resume | eval | export | compare | audit | record | report | check | …``.

Nothing heavy is imported before it is needed. Bad input ends in one line and exit code 2, Ctrl-C in
the line that continues the run and exit code 130.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .config_files import ConfigFile, as_words, read_config
from .errors import UsageError, unknown
from .gl import use_before_gl
from .listing import kind_of, rows
from .options import (
    AuditOptions,
    CheckOptions,
    DoctorOptions,
    EvalOptions,
    ExportOptions,
    ListOptions,
    RecordOptions,
    ResumeOptions,
    RunOptions,
    parse,
    resume_options,
    run_options,
)
from .plugin_files import copy_in
from .plugins import use
from .recipes import all_recipes, find_recipe, recipe_of
from .running import at_checkpoint, change, create, dry_run, export, finished, free_folder, rebuild
from .working import LONG, say, working

if TYPE_CHECKING:
    from rich.table import Table

    from .doctor import Finding
    from .rewards.audit import Audit
    from .trainers.loop import Experiment
    from .trainers.runs.run_folder import RunFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default that of the command line; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except UsageError as error:
        print(f"autotelic: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nautotelic: stopped", file=sys.stderr)
        return 130


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:8} {_first_line(command)}" for name, command in COMMANDS.items()]
        ends = [
            "autotelic COMMAND --help tells more.",
            "autotelic COMMAND --use FILE.py|PACKAGE … imports plugins first.",
        ]
        print("\n".join(["usage: autotelic COMMAND …", "", *lines, "", *ends]))
        return 0
    if words[0] == "--version":
        print(f"autotelic {__version__}")
        return 0
    if words[0] not in COMMANDS:
        raise unknown("command", words[0], COMMANDS)
    places, rest = _take(words[1:], "--use")
    (use if words[0] == "list" else use_before_gl)(places, anew=True)
    taking = {"run": _run, "compare": _compare}.get(words[0])
    return COMMANDS[words[0]](rest) if taking is None else taking(rest, places)


def _take(words: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """The values of an option that may come several times, each time with several values; and the other words."""
    values: list[str] = []
    rest: list[str] = []
    inside = False
    for word in words:
        inside = word == option or (inside and not word.startswith("-"))
        if word.startswith(f"{option}="):
            values.append(word.partition("=")[2])
        elif word == option:
            continue
        else:
            (values if inside else rest).append(word)
    return values, rest


def _first_line(command: Callable[..., int]) -> str:
    return (command.__doc__ or "").partition("\n")[0]


# --- commands ----------------------------------------------------------------------------------


def _list(words: Sequence[str]) -> int:
    """Show the recipes, with the claim and the paper of each, or the names of another kind.

    autotelic list KIND shows names that flags take, built-in and registered: rewards, objectives, curricula, …
    """
    from rich.markup import escape

    options = parse(ListOptions, words, "list")
    if (kind := kind_of(options.kind)) != "recipe":
        table = _table(kind, "what it is", "scores" if kind == "reward" else "where")
        for row in rows(kind):
            table.add_row(*map(escape, row))
        table.columns[-1].overflow = "fold"
        _print(table)
        return 0
    table = _table("recipe", "claim", "arXiv")
    for recipe in all_recipes().values():
        table.add_row(*map(escape, (recipe.name, recipe.claim, recipe.paper)))
    _print(table)
    return 0


def _run(words: Sequence[str], places: Sequence[str] = ()) -> int:
    """Run a recipe in a new folder.

    autotelic run RECIPE [--debug] [--output-dir FOLDER] [--FIELD VALUE …] overrides fields of the recipe's
    config; autotelic run RECIPE --help shows them. RECIPE is a name, a FILE.py or a package.module.
    --use FILE.py|PACKAGE … imports plugins first. --config FILE.yaml|FILE.json|RUN takes values for flags from a file
    or from another run; flags override them.
    """
    if not words or words[0] in ("-h", "--help"):
        print("\n".join(line.strip() for line in (_run.__doc__ or "").splitlines()))
        print("Recipes: " + ", ".join(all_recipes()))
        return 0 if words else 2
    command = shlex.join(["autotelic", "run", *words, *(["--use", *places] if places else [])])
    files, words = _take(words, "--config")
    if len(files) > 1:
        raise UsageError(f"--config takes one file, not {' '.join(files)}")
    given = read_config(files[0]) if files else ConfigFile("", {})
    use_before_gl(given.use)
    places = list(dict.fromkeys([*given.use, *places]))
    name, words = (words[0], words[1:]) if words and not words[0].startswith("-") else (given.recipe, words)
    if not name:
        raise UsageError("autotelic run needs a recipe: autotelic list shows them")
    recipe = find_recipe(name)
    module = recipe.load()
    options = _options(recipe.name, module.Config.tiny() if "--debug" in words else module.Config(), given, words)
    if options.plan:
        with _bad_input():
            print(options.config.plan())
        return 0
    if options.dry_run:
        return _dry_run(module, recipe.name, options.config, places, command)
    path = options.output_dir or free_folder(recipe.name)
    with _bad_input():
        with working("starting", after=LONG):
            folder, new = create(path, recipe.name, options.config, places, command)
        say(f"run: {folder.path}")
        try:
            with working("preparing", after=LONG):
                experiment = module.build(options.config, folder)
        except ValueError:
            if new:
                shutil.rmtree(folder.path, ignore_errors=True)
            raise
    return _train(experiment, folder, resume=False)


def _dry_run(module: Any, recipe: str, config: Any, places: Sequence[str], command: str) -> int:
    """Build a run in a temporary folder, act and learn one scratch round, and print what a round takes."""
    with tempfile.TemporaryDirectory(prefix="autotelic-") as name, _bad_input():
        folder, _ = create(Path(name) / "run", recipe, config, places, command)
        with closing(module.build(config, folder)) as experiment:
            print("\n".join(dry_run(experiment, folder)))
    return 0


def _resume(words: Sequence[str]) -> int:
    """Continue a run from its latest checkpoint, or for more iterations than it was made for."""
    folder = _open(words[0] if words and not words[0].startswith("-") else parse(ResumeOptions, words, "resume").run)
    with _bad_input():
        options = parse(resume_options(recipe_of(folder)[1]), words, "resume")
    if options.changes or options.max_steps:
        change(folder, options.changes, options.max_steps)
    if not options.max_steps and finished(folder):
        rounds, again = len(folder.metrics()), f"autotelic resume {shlex.quote(str(folder.path))} --max-steps +N"
        print(f"{folder.path} is already done: {rounds} iterations, and evaluated after; for more: {again}")
        _write_report(folder)
        return 0
    # A run that was stopped before its first checkpoint has recorded nothing: it begins again.
    return _train(_rebuild(folder), folder, resume=bool(folder.checkpoints()))


def _eval(words: Sequence[str]) -> int:
    """Evaluate a checkpoint of a run on other initial states."""
    options = parse(EvalOptions, words, "eval")
    folder = _open(options.run)
    with _bad_input():
        states = {"eval_episodes": options.episodes, "eval_offset": options.offset}
        experiment, state = at_checkpoint(folder, options.checkpoint, **states)
    with closing(experiment), working("evaluating"):
        result = experiment.evaluate(experiment.stages[int(state["stage"])].actor)
    name = f"{options.checkpoint}-{options.offset}-{options.offset + options.episodes}"
    folder.write_json(f"evaluations/{name}", {"iteration": state["iteration"], **result})
    _print(evaluation_table(result))
    return 0


def _export(words: Sequence[str]) -> int:
    """Write a run's weights as other programs load them: its adapters, or all weights with the adapters in them."""
    options = parse(ExportOptions, words, "export")
    with _bad_input():
        export(_open(options.run), options.folder, options.checkpoint, merged=options.merge)
    print(f"weights: {options.folder}")
    return 0


def _audit(words: Sequence[str]) -> int:
    """Say what a reward or progress model is worth: on recorded episodes, or along a run.

    autotelic audit RUN looks at a run's own reward on its evaluations; autotelic audit MODEL --episodes FOLDER asks
    a model about episodes. What MODEL and FOLDER can be is told in autotelic/auditing.py.
    """
    from .auditing import Chosen, audit_model, audit_run

    options = parse(AuditOptions, words, "audit")
    with _bad_input():
        if options.episodes is None:
            audits, gaps = audit_run(_open(options.model))
        else:
            chosen = Chosen(options.count, options.offset)
            with working("acting and auditing", after=LONG):
                audits, gaps = audit_model(options.model, options.episodes, _rebuild, chosen), []
    _print(audit_table(audits))
    for rule in dict.fromkeys(audit.rule for audit in audits):
        above = ", ".join(f"{audit.threshold:.2f}" for audit in audits if audit.rule == rule)
        print(f"accuracy above {above}: {rule}")
    if not math.isnan(audits[0].calls):
        costs = (sum(a.calls for a in audits) / len(audits), 1000 * sum(a.cpu_seconds for a in audits) / len(audits))
        print("{:.0f} calls and {:.1f} CPU milliseconds per episode".format(*costs))
    print("\n".join([*(each.verdict for each in audits), *(each.verdict for each in gaps)]))
    if options.json is not None:
        document = {"audits": [each.to_json() for each in audits], "hacking": [each.to_json() for each in gaps]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _record(words: Sequence[str]) -> int:
    """Write episodes of a run's policy, or its demonstrations, as a LeRobotDataset."""
    from .auditing import Chosen
    from .recording import Wanted, record_run

    options = parse(RecordOptions, words, "record")
    chosen = Chosen(options.episodes, options.offset)
    with _bad_input():
        wanted = Wanted(chosen, options.frames, options.demonstrations, options.fps)
        with working("recording episodes", after=LONG):
            count = record_run(_open(options.run).path, options.folder, _rebuild, wanted)
    print(f"{count} episodes in {options.folder}")
    return 0


def _compare(words: Sequence[str], places: Sequence[str] = ()) -> int:
    """Compare recipes from one start per seed at an equal budget, and say what is shown.

    autotelic compare RECIPE[:FLAGS] RECIPE[:FLAGS] … --seeds N --budget 90s|4000queries|16steps|own [--primary "A>B"];
    a comparison that was stopped goes on where it stood.
    """
    from .comparing.command import main as compare

    with _bad_input():
        return compare(words, places)


def _report(words: Sequence[str]) -> int:
    """Write a run's report.html again."""
    _write_report(_open(parse(RunOptions, words, "report").run))
    return 0


def _check(words: Sequence[str]) -> int:
    """Try an environment, a reward, a policy, a recipe or a data file before training with it."""
    from .check import findings

    options = parse(CheckOptions, words, "check")
    return 0 if all(finding.good is not False for finding in _told(findings(options))) else 1


def _doctor(words: Sequence[str]) -> int:
    """Say what this machine can do, and what is missing."""
    from .doctor import findings, healthy

    options = parse(DoctorOptions, words, "doctor")
    if not options.gpu:
        if options != DoctorOptions():
            raise UsageError("doctor: --size, --parts and --json are about --gpu")
        return 0 if healthy(_told(findings())) else 1
    from . import doctor_gpu

    found = _told(doctor_gpu.findings(options.size, options.json, options.parts or tuple(doctor_gpu.PARTS)))
    print(f"figures: {options.json}")
    return 0 if all(finding.good for finding in found) else 1


def _told(findings: Iterable[Finding]) -> list[Finding]:
    """Findings, each printed as soon as it is there."""
    from rich.console import Console
    from rich.text import Text

    marks = {True: Text("ok ", "green"), False: Text("no ", "red"), None: Text("   ")}
    console, printed = Console(highlight=False), []
    for finding in findings:
        printed.append(finding)
        console.print(marks[finding.good] + Text(f"{finding.name:20} {finding.text}"), soft_wrap=True)
    return printed


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "list": _list,
    "run": _run,
    "resume": _resume,
    "eval": _eval,
    "export": _export,
    "audit": _audit,
    "record": _record,
    "report": _report,
    "compare": _compare,
    "check": _check,
    "doctor": _doctor,
}


# --- runs --------------------------------------------------------------------------------------


@contextmanager
def _bad_input() -> Iterator[None]:
    """What is made of a person's words raises ValueError for bad ones; it is shown as one line."""
    try:
        yield
    except ValueError as error:
        raise UsageError(" ".join(str(error).split())) from error
    except TypeError as error:
        if "abstract class" not in str(error):  # a person's class that lacks a method of its base
            raise
        raise UsageError(str(error)) from error


def _options(recipe: str, config: Any, given: ConfigFile, words: Sequence[str]) -> Any:
    """The options of a run: a config's values, those of a file over them, and the command's words over both."""
    if given.values:
        try:
            config = parse(run_options(config), as_words(given, config), f"run {recipe}").config
        except UsageError as error:
            raise UsageError(f"{given.name}: {error}") from error
    return parse(run_options(config), words, f"run {recipe}")


def _open(path: str) -> RunFolder:
    from .trainers.runs.run_folder import RunFolder

    with _bad_input():
        return RunFolder.open(Path(path))


def _rebuild(folder: RunFolder, **changes: Any) -> Experiment:
    with _bad_input(), working("preparing", after=LONG):
        return rebuild(folder, **changes)


def _train(experiment: Experiment, folder: RunFolder, *, resume: bool) -> int:
    """Train to the end, then show what changed and write the report."""
    from .trainers.loop import Diverged, train
    from .trainers.runs.checkpoint import CheckpointError

    diverged: Diverged | None = None
    again = f"continue with: autotelic resume {shlex.quote(str(folder.path))}"
    with closing(experiment):
        try:
            train(experiment, folder, resume=resume)
        except KeyboardInterrupt:
            print(f"\nautotelic: stopped; {again}", file=sys.stderr)
            return 130
        except CheckpointError as error:
            raise UsageError(str(error)) from error
        except Diverged as error:  # with what is good evaluated and saved
            diverged = error
        except UsageError as error:
            again = _mended(error, folder, again)
            raise UsageError(f"{error}; the run is kept, {again}" if folder.checkpoints() else str(error)) from error
        except Exception as error:
            again = _mended(error, folder, again)
            if isinstance(error.__cause__, UsageError):  # within a reward, which names itself and the sample
                raise UsageError(f"{error.__cause__}; the run is kept, {again}") from error
            traceback.print_exc()
            print(f"\nautotelic: the run is kept; {again}", file=sys.stderr)
            return 1
    from .trainers.distributed import is_main

    if not is_main():
        return 0
    before, after = folder.read_json("evaluations/before"), folder.read_json("evaluations/after")
    if before and after and (table := comparison_table(before, after)):
        _print(table)
    _write_report(folder)
    if diverged is not None:
        raise diverged
    return 0


def _mended(error: Exception, folder: RunFolder, again: str) -> str:
    """How to go on after an error; resume reads the copy of a plugin, so mending the original alone helps nobody."""
    copy = copy_in(error, folder.path)
    return f"mend {copy}, then {again}" if copy else again


def _write_report(folder: RunFolder) -> None:
    from .trainers.runs.report import write_report

    print(f"report: {write_report(folder)}")


# --- results -----------------------------------------------------------------------------------


def comparison_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Table | None:
    """Two evaluations as a row per category and one for their mean, with 95 % intervals; None if they share none."""
    from .trainers.runs.comparison import compare

    compared = compare(before, after)
    if compared is None:
        return None
    show, several = _percent if compared.rates else _plain, len(compared.rows) > 1
    tested = any(row.p is not None for row in compared.rows)
    table = _table(before.get("unit", "outcome"), "before", "after", "difference", *(["p"] if tested else []))
    for row in (*compared.rows, *([compared.mean] if several else [])):
        cells = [show(row.before, row.before_interval), show(row.after, row.after_interval)]
        cells.append(show(row.difference, row.difference_interval, sign="+"))
        if tested:
            cells.append("" if row.p is None else "<0.001" if row.p < 0.001 else f"{row.p:.3f}")
        table.add_row(row.category, *cells, style="bold" if row is compared.mean else "")
    counts = sorted({count for row in compared.rows for count in row.episodes})
    episodes = " to ".join(f"{count}" for count in dict.fromkeys((counts[0], counts[-1])))
    told = [f"In brackets 95 % intervals of {episodes} attempts{' per row, each by itself' if several else ''}."]
    if tested:
        corrected = ", Holm-corrected over the rows but for their mean, which is pooled" if several else ""
        told.append(f"p: exact McNemar test of the same attempts{corrected}.")
    return _with_caption(table, " ".join(told))


def evaluation_table(evaluation: Mapping[str, Any]) -> Table:
    """One evaluation as a row per category, with 95 % intervals."""
    from .trainers.runs.comparison import outcome_interval
    from .trainers.runs.evaluations import known

    table = _table(evaluation.get("unit", "outcome"), "mean", "attempts")
    for category, outcome in known(evaluation)["outcomes"].items():
        values = outcome["success"]
        show = _percent if set(values) <= {0, 1} else _plain
        table.add_row(category, show(sum(values) / len(values), outcome_interval(values)), str(len(values)))
    return _with_caption(table, "In brackets 95 % intervals.")


def audit_table(audits: Sequence[Audit]) -> Table:
    """A row per audit, in columns that have a value.

    Episodes won and lost; AUC; balanced accuracy; rank correlation of values with time where won and where lost; the
    mean distance between a score and the share of successes at such scores.
    """
    figures = {
        "AUC": [audit.auc for audit in audits],
        "accuracy": [audit.balanced_accuracy for audit in audits],
        "order (won)": [audit.voc_success for audit in audits],
        "order (lost)": [audit.voc_failure for audit in audits],
        "calibration error": [audit.ece for audit in audits],
    }
    figures = {name: values for name, values in figures.items() if not all(map(math.isnan, values))}
    table = _table("task", "won", "lost", *figures)
    for i, audit in enumerate(audits):
        cells = ("" if math.isnan(values[i]) else f"{values[i]:.2f}" for values in figures.values())
        table.add_row(audit.on, str(audit.successes), str(audit.failures), *cells)
    return table


def _table(*heads: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _with_caption(table: Table, caption: str) -> Table:
    table.caption = caption
    return table


def _print(table: Table) -> None:
    """On a terminal as wide as it is; elsewhere nothing is wrapped."""
    from rich.console import Console

    console = Console()
    caption, table.caption = str(table.caption or ""), None
    if not console.is_terminal:
        console = Console(width=console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table)
    if caption:
        console.print(caption, style="dim", soft_wrap=True, highlight=False)


def _percent(value: float, interval: tuple[float, float] | None, sign: str = "") -> str:
    from .numbers import unsigned

    shown = [unsigned(f"{100 * x:{sign}.0f}", sign) for x in (value, *(interval or ()))]
    return f"{shown[0]}{'' if sign else ' %'}" + (f" ({shown[1]}..{shown[2]})" if interval else "")


def _plain(value: float, interval: tuple[float, float] | None, sign: str = "") -> str:
    from .numbers import unsigned

    shown = [unsigned(f"{x:{sign}.3g}", sign) for x in (value, *(interval or ()))]
    return shown[0] + (f" ({shown[1]}..{shown[2]})" if interval else "")
