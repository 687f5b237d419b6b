"""The command line, on a recipe that is made up here and on the real ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

import autotelic
from autotelic import cli, doctor, recipes
from autotelic.errors import UsageError, unknown
from autotelic.options import parse, run_options

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
    interrupted_at: int = -1
    stopped_in: str = ""
    eval_episodes: int = 4
    eval_offset: int = 0


def debug() -> Config:
    return Config(max_steps=2)


def build(config: Config, folder: Any) -> Any:
    import torch

    from autotelic.trainers.loop import Experiment, Stage
    from autotelic.types import Rollout, Task

    if wrong := set(config.tasks) - {"left", "right"}:
        raise ValueError(f"no task {sorted(wrong)[0]}:\\n did you mean left?")

    class Counter:
        value = 0

        def act(self, tasks, n, *, key=(0,), **sampling):
            one = torch.ones(1)
            return [
                Rollout(task, self.value, {"x": one}, one, one.bool(), one.long() * 0)
                for task in tasks
                for _ in range(n)
            ]

        def update(self, rollouts):
            if self.value == config.interrupted_at:
                os.kill(os.getpid(), signal.SIGINT)
            self.value += 1
            return {"count": float(self.value)}

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    class Everything:
        def sample(self, n):
            return [Task(id=name, prompt=name, category=name) for name in config.tasks][:n]

        def update(self, rollouts):
            return {}

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

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
        one = {"success": [int(i < actor.value) for i in episodes], "score": [0.5 for _ in episodes]}
        return {"unit": "success", "outcomes": {name: one | {"seeds": list(episodes)} for name in config.tasks}}

    stage = Stage(config.max_steps, counter, Everything(), reward, {"counter": counter}, len(config.tasks), 2)
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
        assert type(module.debug()) is module.Config
        assert module.Config.__dataclass_params__.frozen
        parse(run_options(module.debug()), [], recipe.name)


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


def test_an_unexpected_error_keeps_its_traceback_and_names_the_run(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "toy/count", "--reward-breaks-at", "2"]) == 1
    error = capsys.readouterr().err
    assert "out of sugar" in error and "Traceback" in error
    assert error.rstrip().endswith("continue with: autotelic resume runs/count-1")
    assert cli.main(["resume", "runs/count-1"]) == 1  # it breaks at the same place again


def test_a_damaged_checkpoint_is_one_line(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["run", "toy/count", "--debug"])
    latest = toy / "runs/count-1/checkpoints" / (toy / "runs/count-1/checkpoints/latest").read_text().strip()
    (latest / "state.json").write_text("{}")
    capsys.readouterr()
    assert cli.main(["resume", "runs/count-1"]) == 2
    one_line(capsys)


def test_a_config_of_another_version_is_refused_by_field(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["run", "toy/count", "--debug"])
    path = toy / "runs/count-1/config.json"
    path.write_text(path.read_text().replace('"seed"', '"sead"'))
    capsys.readouterr()
    assert cli.main(["resume", "runs/count-1"]) == 2
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
