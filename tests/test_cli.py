"""The command line, on a recipe that is made up here and on the real ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

import autotelic
from autotelic import cli, doctor, plugins, recipes
from autotelic.config_files import ConfigFile, as_words
from autotelic.errors import UsageError, unknown
from autotelic.options import parse, run_options

from .point_mass import register_point_mass

TOY = '''"""A counter counts its updates.

After nobody (arXiv:1234.56789); every number is made up.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Config:
    """Numbers of the toy."""

    tasks: tuple[str, ...] = ("left", "right")
    """What to count."""
    max_steps: int = 3
    seed: int = 0
    reward_breaks_at: int = -1
    learner_breaks_at: int = -1
    interrupted_at: int = -1
    stopped_in: str = ""
    eval_episodes: int = 4
    eval_offset: int = 0

    @classmethod
    def tiny(cls) -> Config:
        return cls(max_steps=2)


def build(config: Config, folder: Any) -> Any:
    import torch

    from autotelic import Actor, Curriculum, Experiment, Learner, Rollout, Stage, Task

    if wrong := set(config.tasks) - {"left", "right"}:
        raise ValueError(f"no task {sorted(wrong)[0]}:\\n did you mean left?")

    class Counting(Actor):
        def act(self, tasks, n, *, key=(0,), mode="train", greedy=False):
            one = torch.ones(1)
            return [
                Rollout(task, counter.value, {"x": one}, one, one.bool(), one.long() * 0)
                for task in tasks
                for _ in range(n)
            ]

    class Counter(Learner):
        value = 0

        def update(self, rollouts):
            if self.value == config.interrupted_at:
                os.kill(os.getpid(), signal.SIGINT)
            if self.value == config.learner_breaks_at:
                raise RuntimeError("out of salt")
            self.value += 1
            return {"count": float(self.value)}

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    class Everything(Curriculum):
        def sample(self, n):
            return [Task(id=name, prompt=name, category=name) for name in config.tasks][:n]

        def update(self, rollouts):
            return {}

    counter = Counter()

    def reward(outputs, **columns):
        if counter.value == config.reward_breaks_at:
            raise RuntimeError("out of sugar")
        return [float(value) for value in outputs]

    def stop(place):
        if config.stopped_in == place and not (folder.path / place).exists():
            (folder.path / place).touch()
            raise KeyboardInterrupt

    stop("build")

    def evaluate(actor):
        stop("evaluation")
        episodes = range(config.eval_offset, config.eval_offset + config.eval_episodes)
        one = {"success": [int(i < counter.value) for i in episodes], "score": [0.5 for _ in episodes]}
        return {"unit": "success", "outcomes": {name: one | {"seeds": list(episodes)} for name in config.tasks}}

    stage = Stage(config.max_steps, Counting(), Everything(), reward, {"counter": counter}, len(config.tasks), 2)
    return Experiment([stage], evaluate, seed=config.seed)
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which toy/count is the only recipe."""
    package = tmp_path / "package"
    (package / "toy" / "recipes").mkdir(parents=True)
    (package / "toy" / "recipes" / "count.py").write_text(TOY)
    (package / "toy" / "recipes" / "_shared.py").write_text("raise RuntimeError('not a recipe')")
    monkeypatch.setattr(recipes, "PACKAGE", package)
    monkeypatch.setattr(recipes, "MODALITIES", ("toy",))
    monkeypatch.setattr(autotelic, "__path__", [*autotelic.__path__, str(package)])
    for name in [name for name in sys.modules if name.startswith("autotelic.toy")]:
        monkeypatch.delitem(sys.modules, name)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("autotelic: ")
    return error


def test_list_shows_name_claim_and_paper(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "toy/count" in shown
    assert "A counter counts its updates." in shown
    assert "1234.56789" in shown
    assert "_shared" not in shown


def test_every_real_recipe_has_a_claim_a_config_and_a_preset() -> None:
    for recipe in recipes.all_recipes().values():
        module = recipe.load()
        assert recipe.claim, recipe.name
        assert type(module.Config.tiny()) is module.Config
        assert module.Config.__dataclass_params__.frozen
        parse(run_options(module.Config.tiny()), [], recipe.name)


def test_run_trains_shows_and_reports(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy/count", "--max-steps", "4", "--tasks", "left", "--seed", "7"]) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("left"))
    assert row.split()[1:3] == ["0", "%"]  # before: no success in 4 episodes
    assert "100 %" in row and "+100" in row
    assert "report: runs/count-1/report.html" in shown
    assert (toy / "runs/count-1/report.html").is_file()
    config = json.loads((toy / "runs/count-1/config.json").read_text())
    assert config["config"]["seed"] == 7
    assert config["config"]["tasks"] == ["left"]
    assert config["command"] == "autotelic run toy/count --max-steps 4 --tasks left --seed 7"
    assert len((toy / "runs/count-1/metrics.jsonl").read_text().splitlines()) == 4


def test_debug_is_the_default_that_overrides_apply_to(toy: Path) -> None:
    assert cli.main(["run", "toy/count", "--debug", "--seed", "5"]) == 0
    config = json.loads((toy / "runs/count-1/config.json").read_text())["config"]
    assert (config["max_steps"], config["seed"]) == (2, 5)


def test_runs_are_numbered_and_a_folder_is_not_taken_twice(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy/count", "--debug"]) == 0
    assert cli.main(["run", "toy/count", "--debug"]) == 0
    assert (toy / "runs/count-2/report.html").is_file()
    capsys.readouterr()
    assert cli.main(["run", "toy/count", "--debug", "--output-dir", "runs/count-1"]) == 2
    assert "autotelic resume runs/count-1" in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rnu"], ['unknown command "rnu"', "run"]),
        (["run", "toy/cuont"], ['unknown recipe "toy/cuont"', "toy/count"]),
        (["run", "toy/count", "--max-step", "3"], ['"--max-step"', "--max-steps"]),
        (["run", "toy/count", "--max-steps", "many"], ["--max-steps", "many"]),
        (["run", "toy/count", "stray"], ['"stray"']),
        (["run", "toy/count", "--tasks", "lfet"], ["no task lfet: did you mean left?"]),
        (["run"], []),
        (["resume"], ["RUN"]),
        (["resume", "runs/nothing"], ['unknown run "runs/nothing"']),
        (["report", "runs/nothing"], ['unknown run "runs/nothing"']),
        (["eval", "runs/nothing"], ['unknown run "runs/nothing"']),
        (["eval", "runs/x", "--checkpoint", "worst"], ["worst", "best", "latest"]),
        (["doctor", "--fast"], ['"--fast"']),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    toy: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: list[str]
) -> None:
    assert cli.main(words) == 2
    if told:
        line = one_line(capsys)
        assert all(part in line for part in told), line
    assert not (toy / "runs").exists() or not list((toy / "runs").iterdir())


def test_help_exits_with_0(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == cli.main([]) == cli.main(["run", "--help"]) == 0
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "toy/count", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "What to count." in shown
    assert "--output-dir" in shown


def test_ctrl_c_saves_and_resume_continues_to_the_same_end(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy/count", "--interrupted-at", "1"]) == 130
    assert "autotelic resume runs/count-1" in capsys.readouterr().err
    assert cli.main(["resume", "runs/count-1"]) == 0
    assert cli.main(["run", "toy/count"]) == 0
    metrics = [
        [json.loads(line)["count"] for line in (toy / f"runs/count-{n}/metrics.jsonl").read_text().splitlines()]
        for n in (1, 2)
    ]
    assert metrics[0] == metrics[1] == [1.0, 2.0, 3.0]


def test_resume_changes_what_changes_no_step_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register_point_mass()
    run, words = tmp_path / "run", ["--tasks", "point-mass", "--workers", "-1", "--videos", "0", "--debug"]
    assert cli.main(["run", "vla/oracle_grpo", "--output-dir", str(run), *words]) == 0
    before, _ = (run / "config.json").read_text(), capsys.readouterr()
    for given, told in (
        (["--lr", "1"], "--lr is the same all through a run: autotelic resume changes --max-steps, "),
        (["--save-ever", "2"], 'unknown option of autotelic resume "--save-ever": did you mean --save-every'),
        (["--save-every", "0"], "--save-every"),
        (["--save-every", "soon"], "--save-every"),
        (["--keep-last", "1", "--max-steps", "1"], "--max-steps 1: the run has done 2 already"),
    ):
        assert cli.main(["resume", str(run), *given]) == 2
        assert told in one_line(capsys) and (run / "config.json").read_text() == before
    with pytest.raises(SystemExit) as end:
        cli.main(["resume", str(run), "--help"])
    assert end.value.code == 0 and "--ddp-timeout" in capsys.readouterr().out
    more = ["--save-every", "9", "--keep-last", "1", "--micro-batch-rows", "2", "--max-steps", "+3"]
    assert cli.main(["resume", str(run), *more]) == 0
    config = json.loads((run / "config.json").read_text())["config"]
    assert [config[name] for name in ("save_every", "keep_last", "micro_batch_rows", "max_steps")] == [9, 1, 2, 5]
    assert "iteration-000003" not in {path.name for path in (run / "checkpoints").iterdir()}


@pytest.mark.parametrize("place", ["build", "evaluation"])
def test_a_run_stopped_before_its_first_checkpoint_begins_again(toy: Path, place: str) -> None:
    assert cli.main(["run", "toy/count", "--stopped-in", place]) == 130
    assert cli.main(["resume", "runs/count-1"]) == 0
    assert (toy / "runs/count-1/report.html").is_file()


def test_eval_tries_a_checkpoint_on_other_episodes(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy/count", "--debug"]) == 0  # ends at value 2: episodes 0 and 1 succeed
    capsys.readouterr()
    assert cli.main(["eval", "runs/count-1", "--episodes", "2", "--offset", "1", "--checkpoint", "latest"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("left"))
    assert row.split()[1:3] == ["50", "%"]
    kept = json.loads((toy / "runs/count-1/evaluations/latest-1-3.json").read_text())
    assert kept["outcomes"]["left"]["seeds"] == [1, 2]
    assert kept["iteration"] == 2


def test_a_finished_run_is_not_gone_on_with(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy/count", "--debug"]) == 0
    (toy / "runs/count-1/report.html").unlink()
    capsys.readouterr()
    assert cli.main(["resume", "runs/count-1"]) == 0
    said = capsys.readouterr().out
    assert "already done" in said and "2 iterations" in said
    assert (toy / "runs/count-1/report.html").is_file(), "a report that was lost is written again"


def test_an_unexpected_error_keeps_its_traceback_and_names_the_run(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "toy/count", "--learner-breaks-at", "2"]) == 1
    error = capsys.readouterr().err
    assert "out of salt" in error and "Traceback" in error
    assert error.rstrip().endswith("continue with: autotelic resume runs/count-1")
    assert cli.main(["resume", "runs/count-1"]) == 1  # it breaks at the same place again


def test_a_reward_that_raises_is_one_line(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy/count", "--reward-breaks-at", "2"]) == 2
    error = one_line(capsys)
    assert "out of sugar" in error and error.rstrip().endswith("continue with: autotelic resume runs/count-1")


def test_a_damaged_checkpoint_is_one_line(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["run", "toy/count", "--debug"])
    latest = toy / "runs/count-1/checkpoints" / (toy / "runs/count-1/checkpoints/latest").read_text().strip()
    (latest / "state.json").write_text("{}")
    (toy / "runs/count-1/evaluations/after.json").unlink()  # or there would be nothing left to do
    capsys.readouterr()
    assert cli.main(["resume", "runs/count-1"]) == 2
    one_line(capsys)


def test_a_config_of_another_version_is_refused_by_field(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["run", "toy/count", "--debug"])
    path = toy / "runs/count-1/config.json"
    path.write_text(path.read_text().replace('"seed"', '"sead"'))
    capsys.readouterr()
    assert cli.main(["eval", "runs/count-1"]) == 2
    assert "sead, seed" in one_line(capsys)


def test_a_crashing_check_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    assert doctor._in_process("device") == doctor.Finding("device", False, "crashed with SIGSEGV")
    monkeypatch.setattr(doctor, "find_library", lambda name: None)
    assert doctor._rendering("osmesa").text == "libOSMesa is missing: apt-get install libosmesa6"


def test_a_failing_check_is_told_by_its_last_line() -> None:
    assert doctor._in_process("nonsense") == doctor.Finding("nonsense", False, "KeyError: 'nonsense'")


@pytest.mark.parametrize(
    ("works", "asked", "taken"),
    [("egl osmesa", "", "egl"), ("osmesa", "", "osmesa"), ("egl osmesa", "osmesa", "osmesa"), ("", "", None)],
)
def test_doctor_names_the_backend_that_runs_take(
    works: str, asked: str, taken: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autotelic.envs.rendering import HEADLESS

    assert tuple(doctor.GL_LIBRARIES) == HEADLESS, "the order of runs"
    monkeypatch.setenv("MUJOCO_GL", asked)
    monkeypatch.setattr(doctor, "_rendering", lambda backend: doctor.Finding(backend, backend in works.split(), "?"))
    found = [finding.name for finding in doctor._renderings() if "what runs take" in finding.text]
    assert found == [taken] * (taken is not None)


def test_only_what_training_needs_decides_health() -> None:
    good, bad = doctor.Finding("torch", True, ""), doctor.Finding("rendering (egl)", False, "")
    assert doctor.healthy([good, bad, doctor.Finding("cores", None, "2")])
    assert not doctor.healthy([good, doctor.Finding("simulation", False, "")])


@dataclass(frozen=True)
class Inner:
    size: int = 3


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    names: tuple[str, ...] = ("a",)
    box: tuple[float, Path] = (0.5, Path("x"))
    limit: float | None = None
    mode: Literal["fast", "slow"] = "fast"


def test_a_config_survives_json() -> None:
    from dataclasses import asdict

    config = Outer(Inner(7), ("b", "c"), (1.5, Path("y")), 2.0, "slow")
    kept = json.loads(json.dumps(asdict(config), default=str))
    assert recipes.config_from_json(Outer, kept) == config
    assert recipes.config_from_json(Outer, kept | {"limit": None}).limit is None
    with pytest.raises(UsageError, match=r"config\.inner .* Inner: sise, size differ"):
        recipes.config_from_json(Outer, kept | {"inner": {"sise": 3}})


def test_nested_options_are_parsed_and_named_in_errors() -> None:
    options: Any = parse(run_options(Outer()), ["--inner.size", "9", "--mode", "slow"], "run x")
    assert options.config == Outer(inner=Inner(9), mode="slow")
    with pytest.raises(UsageError, match=r'"--inner.sise": did you mean --inner.size'):
        parse(run_options(Outer()), ["--inner.sise", "9"], "run x")


def test_unknown_names_offer_near_ones_first() -> None:
    assert str(unknown("task", "drawr-open", ["push", "drawer-open"])).endswith("did you mean drawer-open?")
    assert str(unknown("task", "zzz", ["push", "reach"])).endswith("there is push, reach")
    assert str(unknown("task", "zzz", [])).endswith("there is none")
    assert "(20 in all)" in str(unknown("task", "zzz", (f"t{i:02}" for i in range(20))))


def test_the_table_against_hand_computed_numbers() -> None:
    before = {"outcomes": {"push": {"success": [0, 0, 0, 0]}, "reach": {"success": [1, 1, 0, 0]}}}
    after = {"outcomes": {"push": {"success": [1, 1, 1, 1]}, "reach": {"success": [1, 1, 1, 0]}}}
    table = cli.comparison_table(before, after)
    assert table is not None
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert [row[0] for row in rows] == ["push", "reach", "mean"]
    # Wilson, 0 of 4: (0, z² / (n + z²)) = (0, 3.8415 / 7.8415) = (0, 0.490)
    assert rows[0][1] == "0 % (0..49)"
    assert rows[0][2] == "100 % (51..100)"
    assert str(rows[2][1]).startswith("25 %") and str(rows[2][2]).startswith("88 %")
    assert [str(row[3]).partition(" (")[0] for row in rows] == ["+100", "+25", "+62"]
    # McNemar: 2 · 2⁻⁴ = 0.125 and 1; Holm doubles the smaller one
    assert [row[4] for row in rows[:2]] == ["0.250", "1.000"]
    assert cli.comparison_table(before, {"outcomes": {}}) is None


def test_outcomes_that_are_no_rates_are_shown_as_numbers() -> None:
    table = cli.evaluation_table({"outcomes": {"a": {"success": [1.5, 2.5]}, "b": {"success": [0, 1]}}})
    cells = [str(cell) for cell in table.columns[1].cells]
    # Student's t with one degree of freedom: 2 ± 12.706 · 0.5
    assert cells[0] == "2 (-4.35..8.35)"
    assert cells[1].startswith("50 %")


REAL = "vla/evolve_vla"
needs_recipe = pytest.mark.skipif(REAL not in recipes.all_recipes(), reason=f"{REAL} is not written yet")


@needs_recipe
def test_the_real_recipe_from_run_to_resume_after_a_kill(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def autotelic(*words: str, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "autotelic", *words]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stdout=-1, stderr=-1, **options)

    run = autotelic("run", REAL, "--debug", "--output-dir", "one", start_new_session=True)
    latest = tmp_path / "one/checkpoints/latest"
    while run.poll() is None and not latest.exists():
        time.sleep(0.1)
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    assert latest.exists()
    resumed = autotelic("resume", "one")
    out, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert "report: one/report.html" in out
    wrong = autotelic("run", REAL, "--tasks", "drawer-opn-v3")
    _, err = wrong.communicate()
    assert wrong.returncode == 2, err
    assert err.count("\n") == 1 and "drawer-open-v3" in err


# --- recipes, plugins and configs of one's own --------------------------------------------------

BRIGHT = """from autotelic.plugins import register
from number_of_my_plugin import NUMBER


@register("reward", "bright")
def bright(completions, **_):
    return [NUMBER for _ in completions]
"""


def own_recipe(folder: Path) -> Path:
    """A recipe with a neighbour and a plugin, in a folder of its own."""
    folder.mkdir()
    (folder / "number_of_my_plugin.py").write_text("NUMBER = 7.0\n")
    (folder / "my_reward.py").write_text(BRIGHT)
    text = TOY.replace("    import torch\n", "    import torch\n    from autotelic.rewards.names import make_reward\n")
    text = text.replace(
        "        return [float(value) for value in outputs]", "        return reward_named(completions=outputs)"
    )
    text = text.replace('    stop("build")', '    reward_named = make_reward(config.reward)\n    stop("build")')
    text = text.replace('    stopped_in: str = ""', '    stopped_in: str = ""\n    reward: str = "bright"')
    (folder / "my_count.py").write_text(text)
    return folder


def test_a_recipe_of_ones_own_runs_moves_resumes_evaluates_and_reports(
    toy: Path, forget: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    forget()
    own = own_recipe(toy / "own")
    words = ["run", "own/my_count.py", "--use", "own/my_reward.py", "--interrupted-at", "1"]
    assert cli.main(words) == 130
    config = json.loads((toy / "runs/my_count-1/config.json").read_text())
    assert (config["recipe"], config["use"]) == ("plugins/0/my_count.py", ["plugins/0/my_reward.py"])
    assert set(config["plugins"]) == {f"plugins/0/{n}.py" for n in ("my_count", "my_reward", "number_of_my_plugin")}
    shutil.move(toy / "runs/my_count-1", toy / "moved")
    shutil.rmtree(own)
    forget()
    capsys.readouterr()
    assert cli.main(["resume", "moved"]) == 0
    records = [json.loads(line) for line in (toy / "moved/metrics.jsonl").read_text().splitlines()]
    assert [record["reward"] for record in records] == [7.0, 7.0, 7.0]
    assert cli.main(["eval", "moved", "--episodes", "2", "--offset", "1", "--checkpoint", "latest"]) == 0
    assert cli.main(["report", "moved"]) == 0
    capsys.readouterr()
    (toy / "moved/plugins/0/number_of_my_plugin.py").unlink()
    assert cli.main(["eval", "moved"]) == 2
    assert "number_of_my_plugin.py is missing: it is part of the run" in one_line(capsys)


def test_a_plugin_that_a_flag_names_is_copied_and_a_run_can_be_given_back_as_config(
    toy: Path, forget: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    forget()
    own_recipe(toy / "own")
    words = ["run", "own/my_count.py", "--reward", "own/my_reward.py:bright", "--seed", "3", "--tasks", "left"]
    assert cli.main([*words, "--output-dir", "one"]) == 0
    config = json.loads((toy / "one/config.json").read_text())
    assert config["config"]["reward"] == "plugins/0/my_reward.py:bright"
    shutil.rmtree(toy / "own")
    forget()
    assert cli.main(["run", "--config", "one", "--max-steps", "1", "--output-dir", "two"]) == 0
    again = json.loads((toy / "two/config.json").read_text())
    assert again["config"] == config["config"] | {"max_steps": 1}
    assert (toy / "two/plugins/0/my_reward.py").is_file()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run", "nowhere.py"], "there is no file nowhere.py"),
        (["run", "no.such.module"], "cannot import no.such.module: ModuleNotFoundError"),
        (["run", "half.py"], "half.py: the recipe half_"),
        (
            ["run", "toy/count", "--use", "broken.py"],
            "broken.py: ZeroDivisionError: division by zero (broken.py, line 2)",
        ),
        (["report", "x", "--use", "nowhere.py"], "there is no file nowhere.py"),
        (["list", "rewrads"], 'unknown kind of plugin "rewrads": did you mean rewards'),
        (["run", "toy/count", "--config", "none.yaml"], "there is no file none.yaml"),
        (
            ["run", "toy/count", "--config", "typo.yaml"],
            'unknown field in typo.yaml "max_stesp": did you mean max_steps',
        ),
        (["run", "toy/count", "--config", "wrong.json"], "wrong.json: "),
        (["run", "toy/count", "--config", "list.yaml"], "list.yaml holds a list"),
        (["run", "--config", "fine.yaml"], "autotelic run needs a recipe"),
        (["check", "empty.py"], "empty.py registers nothing that can be tried"),
    ],
)
def test_bad_plugins_and_configs_are_one_line(
    toy: Path, forget: Callable[[], None], capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    forget()
    for name, text in {
        "half.py": '"""Half."""\ndef build(config, folder): ...',
        "broken.py": "x = 1\nx / 0",
        "typo.yaml": "max_stesp: 3",
        "wrong.json": '{"max_steps": "many"}',
        "list.yaml": "- 3",
        "fine.yaml": "seed: 1",
        "empty.py": "",
    }.items():
        (toy / name).write_text(text)
    assert cli.main(words) == 2
    assert line in one_line(capsys)
    assert not (toy / "runs").exists()


def test_flags_override_a_config_file_which_overrides_defaults(toy: Path) -> None:
    (toy / "my.yaml").write_text("seed: 8\nmax_steps: 1\ntasks: [right]\neval-episodes: 3\n")
    assert cli.main(["run", "toy/count", "--config", "my.yaml", "--seed", "9"]) == 0
    config = json.loads((toy / "runs/count-1/config.json").read_text())["config"]
    assert (config["seed"], config["max_steps"], config["tasks"], config["eval_episodes"]) == (9, 1, ["right"], 3)


def test_words_of_a_config_file_say_every_kind_of_value() -> None:
    @dataclass(frozen=True)
    class Many:
        inner: Inner = Inner()
        flag: bool = True
        names: tuple[str, ...] = ("a",)
        limit: float | None = 1.0
        small: float = 0.0
        text: str = "x"

    values = {
        "inner": {"size": 5},
        "flag": False,
        "names": ["b", "c"],
        "limit": None,
        "small": -0.5,
        "text": "two words",
    }
    words = as_words(ConfigFile("x.yaml", values), Many())
    expected = Many(Inner(5), False, ("b", "c"), None, -0.5, "two words")
    assert parse(run_options(Many()), words, "run x").config == expected
    with pytest.raises(UsageError, match=r'unknown field in x.yaml "inner.sise": did you mean inner.size'):
        as_words(ConfigFile("x.yaml", {"inner": {"sise": 5}}), Many())


def test_flags_of_other_toolkits_lead_to_ours() -> None:
    @dataclass(frozen=True)
    class One:
        lr: float = 1.0

    with pytest.raises(UsageError, match=r'"--learning-rate": it is --lr here'):
        parse(run_options(One()), ["--learning-rate", "3"], "run x")


def test_list_shows_what_a_reward_is_and_what_it_scores(
    toy: Path, forget: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forget()
    own_recipe(toy / "own")
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["list", "rewards", "--use", "own/my_reward.py"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "whatever its spelling" in rows["exact"] and rows["exact"].split()[-1] == "text"
    assert rows["jpeg"].split()[-1] == "image" and rows["bright"].split()[-1] == "text"
    for kind in plugins.KINDS.values():
        assert cli.main(["list", kind.plural]) == 0
    assert "-E[min(rho A" in capsys.readouterr().out  # brackets are no markup


# --- check and doctor ---------------------------------------------------------------------------

REWARDS = """
def right(completions, references, **_): return [float(c == r) for c, r in zip(completions, references)]
def begins(completions, references, **_): return [float(r.startswith(c)) for c, r in zip(completions, references)]
def anything(completions, references, **_): return [1.0 for _ in completions]
def half(completions, references, **_): return [0.5 * (c == r) for c, r in zip(completions, references)]
def endless(completions, **_): return [float("inf") for _ in completions]
def short(completions, **_): return [0.0]
"""


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("right", ""),
        ("begins", "empty answer"),
        ("anything", "constant answer"),
        ("half", "gold answer"),
        ("endless", "returned inf"),
        ("short", "returned 1 score for 4 samples"),
    ],
)
def test_check_tells_a_reward_that_can_be_fooled(
    tmp_path: Path, forget: Callable[[], None], capsys: pytest.CaptureFixture[str], name: str, line: str
) -> None:
    (tmp_path / "checked_rewards.py").write_text(REWARDS)
    assert cli.main(["check", f"{tmp_path / 'checked_rewards.py'}:{name}"]) == (1 if line else 0)
    bad = [each for each in capsys.readouterr().out.splitlines() if each.startswith("no ")]
    assert bool(bad) == bool(line) and (not line or any(line in each for each in bad)), bad


WORLD = """
import numpy as np
from autotelic.envs.simulator import EnvSpec
from autotelic.plugins import register
from tests.point_mass import arrived, straight
from autotelic.vla.policy import ActionModel, ActionPolicy

def frozen(env): return None
def same(env, state): pass

register("environment", "checked/fine", EnvSpec("test/PointMass-v0", "go", 8, arrived, expert=straight))
register("environment", "checked/stuck", EnvSpec("test/PointMass-v0", "go", 8, arrived, save=frozen, restore=same))

def make(observation, action, chunk):
    return ActionPolicy(ActionModel(observation, action, chunk=chunk))

def narrow(observation, action, chunk):
    return ActionPolicy(ActionModel(observation, action + 1, chunk=chunk))
"""


def test_check_tries_environments_and_policies(
    tmp_path: Path, forget: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checked_world.py"
    path.write_text(WORLD)
    assert cli.main(["check", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("no ")] == []
    told = [line.strip() for line in lines if "cannot be restored" in line]
    assert len(told) == 1 and told[0].startswith("checked/stuck: saved state it cannot be restored (the observation")
    assert any("checked/fine: expert" in line and "3 of 3" in line for line in lines)
    for name, code in (("make", 0), ("narrow", 1)):
        assert cli.main(["check", f"{path}:{name}", "--kind", "policy", "--environment", "checked/fine"]) == code


def test_check_tells_what_is_wrong_with_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "answer": 1}\n{"prompt": "b", "answer": 2, "level": 3}\n')
    assert cli.main(["check", str(path)]) == 0
    assert "level in 1 of 2" in capsys.readouterr().out
    path.write_text('{"prompt": "a", "answer": 1}\n\n{"answer": 1, "prompt": "a"}\n')
    assert cli.main(["check", str(path)]) == 1
    assert "1 rows come twice, such as 1 and 2" in capsys.readouterr().out
    path.write_text('{"prompt": "a", "answer": 1}\n\n{"prompt": \n')
    assert cli.main(["check", str(path)]) == 1
    assert "data.jsonl line 3 is no JSON object" in capsys.readouterr().out
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    (tmp_path / "data.csv").write_text("prompt,answer,image\na,1,broken.png\n")
    assert cli.main(["check", str(tmp_path / "data.csv")]) == 1
    assert "data.csv line 2: image 1 cannot be decoded" in " ".join(capsys.readouterr().out.split())


def test_doctor_names_a_pair_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {"autotelic": ["numpy>=1"], "numpy": ["pillow>=999", 'gone; extra == "x"']}
    monkeypatch.setattr(doctor, "requires", lambda name: needs.get(name, []))
    (finding,) = doctor._pairs()
    assert finding.good is False and "numpy" in finding.text and "needs pillow >=999, installed is" in finding.text


def test_doctor_puts_adapters_into_models() -> None:
    assert doctor._adapters().startswith("peft ")


def test_an_extra_that_is_missing_or_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pip install -e '.[x]'" in doctor._extra("x", ["no-such-package"]).text
    monkeypatch.setattr(doctor, "_in_process", lambda check: doctor.Finding(check, False, "ImportError: no"))
    bad = doctor._extra("x", ["numpy"])
    assert bad == doctor.Finding("extra x", False, "ImportError: no") and doctor.healthy([bad])
