"""The first hour of somebody new: names, defaults, lines on the way, folders that move, processes without files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from autotelic import cli
from autotelic.errors import UsageError

from .cases import By, Gives, GoesOn, Refuses, Required, autotelic, case, python

ROOT = Path(__file__).parents[2]

Stated = Callable[[Callable[[Path], object]], Callable[[Path], object]]

TOY = '''"""Spells words."""

from tests.toy_recipe import Config, build
'''


def hour(
    name: str, entry: str, required: Required, *, modality: str = "core", by: By = "user", **marks: bool
) -> Stated:
    """A case of the first hour, as ``cases.case`` states one."""
    return case(name, kind="first hour", modality=modality, entry=entry, required=required, by=by, **marks)


def command(*words: object, folder: Path, **environment: str) -> str:
    """What the command line prints, run in this process in a folder; raises as ``cases.autotelic`` does."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, environment),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = cli.main([str(word) for word in words])
    if code == 0:
        return out.getvalue() + err.getvalue()
    lines = err.getvalue().strip().splitlines()
    if len(lines) == 1 and lines[0].startswith("autotelic: "):
        raise UsageError(lines[0].removeprefix("autotelic: "))
    raise RuntimeError(f"exit code {code}: {err.getvalue()[-2000:]}")


@contextlib.contextmanager
def nothing_made() -> Iterator[None]:
    """Whatever takes long to make or load raises AssertionError."""
    from autotelic.diffusion import pipelines
    from autotelic.diffusion.small import pretraining
    from autotelic.vla import setting
    from autotelic.vlm.policy import TokenPolicy
    from autotelic.vlm.small import glimpse_training

    made = mock.Mock(side_effect=AssertionError("something was made before the names were looked at"))
    with (
        mock.patch.object(glimpse_training, "default_model", made),
        mock.patch.object(pretraining, "default_pipeline", made),
        mock.patch.object(pipelines, "load", made),
        mock.patch.object(setting, "make_pool", made),
        mock.patch.object(TokenPolicy, "from_pretrained", made),
    ):
        yield


# --- names are looked at before anything is made -------------------------------------------------

DATA = '{"prompt": "What is 1 + 1?", "answer": "2"}\n{"prompt": "What is 1 + 2?", "answer": "3"}\n' * 5
PLUGIN = """def tidy(completions, **columns):
    return [0.0 for _ in completions]


class Nothing:
    pass
"""
WRONG = [
    ("vlm/grpo", "--rewards exat", 'unknown reward "exat": did you mean exact'),
    ("vlm/grpo", "--rewards exat:0.5 digits", 'unknown reward "exat": did you mean exact'),
    ("vlm/grpo", "--rewards exact:much", "much"),
    ("vlm/grpo", "--rewards my.py:tydy", "did you mean my.py:tidy"),
    ("vlm/grpo", "--rewards nosuch.py:tidy", "no file nosuch.py"),
    ("vlm/grpo", "--gate canary --judge exat", 'unknown reward "exat": did you mean exact'),
    ("vlm/grpo", "--objective gpro", 'unknown objective "gpro": did you mean .*grpo'),
    ("vlm/grpo", "--objective my.py:Tydy", "my.py"),
    ("vlm/grpo", "--advantage gpro", 'unknown advantage "gpro": did you mean .*grpo'),
    ("vlm/grpo", "--curriculum unifrom", 'unknown curriculum "unifrom": did you mean uniform'),
    ("vlm/grpo", "--gate canray", 'unknown gate "canray": did you mean canary'),
    ("vlm/grpo", "--trackers tensorbord", 'unknown tracker "tensorbord": did you mean tensorboard'),
    ("vlm/grpo", "--tools pyton", 'unknown tool "pyton"'),
    ("vlm/grpo", "--data nosuch.jsonl", "nosuch.jsonl"),
    ("vlm/grpo", "--data rows.jsonl --eval-data nosuch.jsonl", "nosuch.jsonl"),
    ("vlm/grpo", "--model ./nosuch --data rows.jsonl", "no folder ./nosuch"),
    ("vlm/grpo", "--learning-rate 1e-5", "it is --lr here"),
    ("vlm/grpo", "--learning_rate 1e-5", "it is --lr here"),
    ("vlm/grop", "", 'unknown recipe "vlm/grop": did you mean vlm/grpo'),
    ("diffusion/prdp", "--rewards atributes", 'unknown reward "atributes": did you mean attributes'),
    ("diffusion/prdp", "--judge nearst_render", 'unknown reward "nearst_render": did you mean nearest_render'),
    ("diffusion/prdp", "--gate canray", 'unknown gate "canray": did you mean canary'),
    ("diffusion/ddpo", "--objective gpro", 'unknown objective "gpro": did you mean .*grpo'),
    ("diffusion/prdp", "--trackers tensorbord", 'unknown tracker "tensorbord": did you mean tensorboard'),
    ("diffusion/prdp", "--data nosuch.txt", "nosuch.txt"),
    ("diffusion/prdp", "--model ./nosuch", "no folder ./nosuch"),
    ("diffusion/dpo", "--pairs nosuch.jsonl", "nosuch.jsonl"),
    ("vla/evolve_vla", "--rewards progres", 'unknown reward "progres": did you mean progress'),
    ("vla/evolve_vla", "--tasks reach-v4", "did you mean"),
    ("vla/evolve_vla", "--tasks reach-v3:much", "number of demonstrations"),
    ("vla/evolve_vla", "--clone-tasks reach-v4", "did you mean"),
    ("vla/evolve_vla", "--critic ownn", 'unknown .*"ownn": did you mean own'),
    ("vla/evolve_vla", "--critic my.py:Ownn", "my.py"),
    ("vla/evolve_vla", "--model my.py:MyPolicy", "my.py"),
    ("vla/evolve_vla", "--model my.py:Nothing", "has no decide"),
    ("vla/evolve_vla", "--model ./nosuch", "no folder ./nosuch"),
    ("vla/evolve_vla", "--gate canray", 'unknown gate "canray": did you mean canary'),
    ("vla/evolve_vla", "--judge exat", 'unknown reward "exat": did you mean exact'),
    ("vla/evolve_vla", "--trackers tensorbord", 'unknown tracker "tensorbord": did you mean tensorboard'),
    ("vla/evolve_vla", "--demonstrations-from nosuch --tasks reach-v3", "nosuch"),
    ("vla/oracle_grpo", "--rewards sucess", 'unknown reward "sucess": did you mean success'),
]


def _name(recipe: str, words: str, pattern: str) -> None:
    modality = recipe.partition("/")[0]

    @hour(f"newcomer 15: {recipe} {words}".strip(), "flag", Refuses(pattern), modality=modality)
    def _(folder: Path) -> object:
        (folder / "my.py").write_text(PLUGIN)
        (folder / "rows.jsonl").write_text(DATA)
        with nothing_made():
            return command("run", recipe, *words.split(), folder=folder)


for _row in WRONG:
    _name(*_row)


@hour("newcomer 15: a name that is not there leaves no folder behind", "flag", Gives([False, False]))
def _(folder: Path) -> object:
    left = []
    for words in ("vla/evolve_vla --tasks reach-v4", "vlm/grpo --rewards exat"):
        with nothing_made(), contextlib.suppress(UsageError):
            command("run", *words.split(), folder=folder)
        left.append((folder / "runs").exists() and any((folder / "runs").iterdir()))
    return left


@hour("newcomer 15: --debug takes the run's own default model", "--debug", Gives([]), modality="vlm")
def _(folder: Path) -> object:
    from autotelic.recipes import all_recipes

    others = []
    for recipe in all_recipes().values():
        config = recipe.load().Config
        made_by = [name for name in ("model", "seed", "split", "demonstrations") if recipe.name.startswith("vlm/")]
        others += [recipe.name for name in made_by if getattr(config.tiny(), name) != getattr(config(), name)]
    return others


def _steps_for(recipe: str) -> dict[str, Any]:
    from autotelic.recipes import find_recipe

    config = find_recipe(recipe).load().Config(model="owner/model")
    settled = config.resolved(False, tasks_per_step=8)
    held = ("sample_tokens", "sample_rows", "micro_batch_tokens", "micro_batch_rows")
    return {name: getattr(settled, name, None) for name in ("lr", "weight_decay", "group_size", *held)}


def _little(taken: dict[str, Any]) -> bool:
    """Whether what is held at once suits a large model."""
    tokens = max(taken.get(name) or 0 for name in ("sample_tokens", "micro_batch_tokens"))
    return tokens <= 8192 and max(taken.get(name) or 0 for name in ("sample_rows", "micro_batch_rows")) <= 8


@hour(
    "newcomer 5: no recipe gives a model of one's own the learning rate, decay and batch of the toy",
    "--model",
    Gives([]),
)
def _(folder: Path) -> object:
    from autotelic.recipes import all_recipes

    strange = []
    for name in set(all_recipes()) - {"vlm/arithmetic", "vlm/tt_si"}:  # one has a model of its own, one no rounds
        taken = _steps_for(name)
        safe = taken["lr"] <= 1e-4 and taken["weight_decay"] <= 0.01
        if not (safe and taken["group_size"] <= 8 and _little(taken)):
            strange.append(f"{name}: {taken}")
    return strange


@hour(
    "newcomer 5: the line of defaults says for what they are, also for a network of one's own",
    "--model",
    Gives(True),
    modality="vla",
)
def _(folder: Path) -> object:
    from autotelic.trainers import setting
    from autotelic.vla.recipes.evolve_vla import Config

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        setting.settled(Config(model="my.py:MyPolicy"), True, None, tasks_per_step=8)
    return "lr 0.0002" in said.getvalue() and "small default model" not in said.getvalue()


# --- runs that end, move, and are gone on with ---------------------------------------------------


def _toy_run(folder: Path) -> Path:
    (folder / "toy.py").write_text(TOY)
    command("run", "toy.py", "--output-dir", "run", folder=folder)
    return folder / "run"


@hour("newcomer 13: a finished run that is resumed says so and does nothing", "resume", Gives([True, True]))
def _(folder: Path) -> object:
    run = _toy_run(folder)
    stamp = (run / "evaluations" / "after.json").stat().st_mtime_ns
    said = command("resume", "run", folder=folder)
    return ["already done" in said, (run / "evaluations" / "after.json").stat().st_mtime_ns == stamp]


@hour("newcomer 13: a run that lost its last evaluation is not done", "resume", Gives(True), by="machine")
def _(folder: Path) -> object:
    run = _toy_run(folder)
    (run / "evaluations" / "after.json").unlink()
    command("resume", "run", folder=folder)
    return (run / "evaluations" / "after.json").is_file()


@hour(
    "newcomer 14: a run with a plugin file is opened from another folder, moved, its original gone",
    "plugin file",
    GoesOn(),
)
def _(folder: Path) -> object:
    run = _toy_run(folder)
    (folder / "toy.py").unlink()
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    run.rename(elsewhere / "moved")
    return command("report", "moved", folder=elsewhere), command("resume", elsewhere / "moved", folder=folder)


PLACES = [
    ("vlm/grpo", "--data", "rows.jsonl", "data"),
    ("vlm/grpo", "--data rows.jsonl --eval-data", "rows.jsonl", "eval_data"),
    ("vlm/grpo", "--data rows.jsonl --model", "weights", "model"),
    ("vla/evolve_vla", "--model", "weights", "model"),
    ("vla/evolve_vla", "--demonstrations-from", "weights", "demonstrations_from"),
    ("diffusion/prdp", "--data", "rows.jsonl", "data"),
    ("diffusion/prdp", "--model", "weights", "model"),
    ("diffusion/dpo", "--pairs", "rows.jsonl", "pairs"),
]


def _place(recipe: str, flag: str, place: str, field: str) -> None:
    @hour(
        f"newcomer 14: {recipe} {flag} {place} is found from another folder",
        "path",
        Gives(True),
        modality=recipe.partition("/")[0],
    )
    def _(folder: Path) -> object:
        from autotelic.recipes import find_recipe, recipe_of
        from autotelic.running import create

        (folder / "rows.jsonl").write_text(DATA)
        (folder / "weights").mkdir()
        (folder / "elsewhere").mkdir()
        with contextlib.chdir(folder):
            module = find_recipe(recipe).load()
            options = cli._options(recipe, module.Config(), cli.ConfigFile("", {}), [*flag.split(), place])
            run, _ = create(Path("run"), recipe, options.config, (), "autotelic run")
        (folder / "run").rename(folder / "elsewhere" / "run")
        with contextlib.chdir(folder / "elsewhere"):
            kept = getattr(recipe_of(run.open("run"))[1], field)
            return all((Path(each)).exists() for each in ((kept,) if isinstance(kept, str) else kept))


for _where in PLACES:
    _place(*_where)


@hour("newcomer 14: a reward in an interpreter of its own is copied with the run", "plugin file", Gives(True))
def _(folder: Path) -> object:
    from autotelic.recipes import find_recipe, recipe_of
    from autotelic.running import create

    (folder / "my.py").write_text(PLUGIN)
    config = find_recipe("vlm/grpo").load().Config(rewards=(f"isolated:{folder}/my.py:tidy", "exact:0.5"))
    run, _ = create(folder / "run", "vlm/grpo", config, (), "autotelic run")
    (folder / "my.py").unlink()
    kept = recipe_of(run.open(folder / "run"))[1].rewards[0]
    return Path(kept.removeprefix("isolated:").rpartition(":")[0]).is_file()


@hour("vla 7: a file of one's own that raises is told with the copy that resume reads", "plugin file", Gives(True))
def _(folder: Path) -> object:
    (folder / "toy.py").write_text(
        f"{TOY}\nfrom dataclasses import replace\nimport tests.toy_recipe\n\n\ndef build(config, folder):\n"
        "    experiment = tests.toy_recipe.build(config, folder)\n    spelled = experiment.stages[0].reward\n"
        "    def broken(**columns):\n        raise KeyError('sugar')\n"
        "    experiment.stages = [replace(experiment.stages[0], reward=broken)]\n    return experiment\n"
    )
    try:
        command("run", "toy.py", "--output-dir", "run", folder=folder)
    except (UsageError, RuntimeError) as error:
        return "run/plugins/0/toy.py" in str(error)
    return False


# --- lines on the way ----------------------------------------------------------------------------


@hour(
    "newcomer 2: without a terminal every round says what is left, and every verdict of a gate is told",
    "terminal",
    Gives([True, True]),
    by="machine",
)
def _(folder: Path) -> object:
    from autotelic.trainers.runs.progress import Progress
    from autotelic.types import Verdict

    said = io.StringIO()
    with contextlib.redirect_stdout(said), Progress(4, 0) as progress:
        progress.show(1, {"reward": 0.5, "time/act": 1.0, "time/learn": 1.0})
        progress.decided(1, Verdict("rollback", "the judge fell by 0.3"))
    first, *others = said.getvalue().splitlines()
    return ["6 s left" in first, any("rollback" in line and "fell by 0.3" in line for line in others)]


@hour(
    "newcomer 2: what takes long says that it began, goes on and ended, without a terminal",
    "terminal",
    Gives([True, True, True]),
    by="machine",
)
def _(folder: Path) -> object:
    from autotelic.working import working

    said = io.StringIO()
    with contextlib.redirect_stdout(said), working("cloning", total=10, every=0.02) as advance:
        for _ in range(4):
            advance(1)
            time.sleep(0.03)
    lines = said.getvalue().splitlines()
    return ["cloning" in lines[0], any(" of 10" in line for line in lines[1:-1]), " s" in lines[-1]]


@hour("newcomer 2: what is done at once says nothing of its end", "terminal", Gives(1), by="machine")
def _(folder: Path) -> object:
    from autotelic.working import working

    said = io.StringIO()
    with contextlib.redirect_stdout(said), working("evaluating before training"):
        pass
    return len(said.getvalue().splitlines())


QUIET = """
import subprocess, sys, time
began = time.monotonic(); longest = 0.0; last = began
run = subprocess.Popen([sys.executable, "-m", "autotelic", *sys.argv[1:]], stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT)
for line in run.stdout:
    now = time.monotonic(); longest = max(longest, now - last); last = now
print(run.wait(), round(longest, 1))
"""


@hour(
    "newcomer 2: a robot's run is not silent for long from start to end",
    "terminal",
    Gives(True),
    modality="vla",
    by="machine",
    slow=True,
)
def _(folder: Path) -> object:
    few = ["--max-steps", "2", "--eval-episodes", "20", "--videos", "0"]
    words = ["run", "vla/evolve_vla", "--tasks", "reach-v3", *few]
    code, longest = python(QUIET, *words, folder=folder).split()[-2:]
    return code == "0" and float(longest) < 12  # the first line waits for torch


@hour(
    "newcomer 15: the default pipeline is made with a line and its progress without a terminal",
    "terminal",
    Gives(True),
    modality="diffusion",
    by="machine",
)
def _(folder: Path) -> object:
    from functools import partial

    from autotelic.diffusion.small import pretraining

    said = io.StringIO()
    few = partial(pretraining.Pretraining, steps=3, width=32, layers=1, batch=2)
    with (
        contextlib.redirect_stdout(said),
        mock.patch.dict(os.environ, {"AUTOTELIC_CACHE": str(folder)}),
        mock.patch.object(pretraining, "Pretraining", few),
    ):
        pretraining.default_pipeline()
    return "pipeline" in said.getvalue() and "once" in said.getvalue()


# --- processes without a file, extras, tables ----------------------------------------------------


@hour("newcomer 12: a Trainer shows itself in a notebook", "notebook", Gives([True, True]))
def _(folder: Path) -> object:
    from autotelic import Trainer

    (folder / "toy.py").write_text(TOY)
    with contextlib.redirect_stdout(io.StringIO()), Trainer(str(folder / "toy.py"), output_dir=folder / "run") as run:
        new = run._repr_html_()
        run.train()
        return ["not begun" in new, "<table" in run._repr_html_()]


NOTEBOOK = """
from autotelic import Trainer
from autotelic.testing import vlms

rows = [{"prompt": f"{a} + 1", "answer": str(a + 1)} for a in range(20)]

def brief(completions, **columns):
    return [-len(text) / 100 for text in completions]

with Trainer("vlm/grpo", debug=True, data=rows, model=sys.argv[1], rewards=["exact", brief], gate="none") as trainer:
    trainer.train()
    print(len(trainer.metrics), trainer.report.is_file())
"""


@hour(
    "newcomer 12: a function of a script on the standard input is a reward",
    "notebook",
    Gives(True),
    modality="vlm",
    slow=True,
)
def _(folder: Path) -> object:
    from autotelic.testing import vlms

    model = folder / "model"
    for part in vlms.text():
        part.save_pretrained(model)
    return "2 True" in python(f"import sys\n{NOTEBOOK}", model, folder=folder)


@hour(
    "newcomer 8: a renderer's package that is missing is told in a line",
    "extra",
    Refuses("pygame"),
    modality="vla",
    by="machine",
)
def _(folder: Path) -> object:
    from autotelic.envs.simulator import EnvSpec, View, make_simulator, register, spec_of

    name = "first-hour/knoll"
    try:
        spec_of(name)
    except UsageError:
        register(name, EnvSpec("MountainCarContinuous-v0", "drive up the hill", 300, _terminated))
    with mock.patch.dict(sys.modules, {"pygame": None}):
        simulator = make_simulator(name)
        simulator.reset(0)
        return simulator.frame(View(64))


def _terminated(outcome: Any) -> bool:
    return bool(outcome.terminated)


@hour(
    "newcomer smaller: nothing is cut off in a pipe, and columns without a value are left out",
    "audit",
    Gives([True, True, True]),
)
def _(folder: Path) -> object:
    from autotelic.rewards.audit import audit_scores

    names = ["drawer-open-with-the-left-hand-v3", "close-the-door-behind-you-v3"]
    audits = [audit_scores([0.1, 0.2, 0.9, 0.8] * 8, [0, 0, 1, 1] * 8, name="the reward", on=on) for on in names]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        cli._print(cli.audit_table(audits))
    text = said.getvalue()
    return [all(name in text for name in names), "calibration error" in text, "order (won)" not in text]


@hour(
    "newcomer smaller: a run whose evaluations hold no scores is not sent in a circle",
    "audit",
    Refuses("vlm/grpo.*robot"),
    modality="vlm",
)
def _(folder: Path) -> object:
    from autotelic.trainers.runs.run_folder import RunFolder

    run = RunFolder.create(folder / "runs" / "grpo-5", recipe="vlm/grpo", config={}, command="autotelic run vlm/grpo")
    run.write_json("evaluations/after", {"outcomes": {"red": {"success": [1, 0], "seeds": [0, 1]}}})
    return command("audit", "runs/grpo-5", folder=folder)


@hour(
    "newcomer 4: the first reward of one's own that README shows goes into a run",
    "README",
    Gives(True),
    modality="vla",
    slow=True,
)
def _(folder: Path) -> object:
    import re

    readme = (ROOT / "README.md").read_text()
    code = next(each for each in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "def calm" in each)
    line = next(each for each in readme.splitlines() if each.startswith("autotelic run") and "my_rewards.py" in each)
    (folder / "my_rewards.py").write_text(code)
    said = autotelic(*line.split()[1:], "--debug", "--tasks", "reach-v3", "--output-dir", "run", folder=folder)
    rows = [json.loads(row) for row in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return "report:" in said and {"reward/near", "reward/calm"} <= rows[-1].keys()
