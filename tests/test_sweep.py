"""Sweeps: runs from one start per seed, resumed where they stood, summed up over seeds."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotelic import sweep
from autotelic.errors import UsageError
from autotelic.recipes import find_recipe
from autotelic.sweep import Job, Results, Sweep, attempts, dump, words_of
from autotelic.trainers.loop import train
from autotelic.trainers.runs import checkpoint
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.trainers.setting import settled

from . import toy_recipe
from .test_loop import same, untimed

ROOT = Path(__file__).parents[1]
TOY = "toy/spelling"
ARMS: dict[str, dict[str, Any]] = {"default": {}, "no learning": {"learn": False}, "wide": {"spread": 2.0}}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy is a recipe; processes find its module."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sweep, "find_recipe", lambda name: toy_recipe.TOY if name == TOY else find_recipe(name))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Results]:
    made = Sweep(TOY, ARMS, (3, 4), tmp_path_factory.mktemp("sweep"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "find_recipe", lambda name: toy_recipe.TOY)
        return made, made.run()


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*-*/**/*")}


def state(path: Path) -> Any:
    return RunFolder.open(path).load_checkpoint("latest")["now"]


def test_arms_of_a_seed_share_the_start_that_their_configs_agree_on(done: tuple[Sweep, Results]) -> None:
    made, results = done
    starts = {(a, s): checkpoint.load(made.path(a, s) / "start") for a in ARMS for s in made.seeds}
    assert same(starts["default", 3], starts["no learning", 3]), "it was made again"
    assert starts["wide", 3]["made"] != starts["default", 3]["made"] != starts["default", 4]["made"]
    before = {arm: [run.before["outcomes"] for run in runs] for arm, runs in results.runs.items()}
    assert before["default"] == before["no learning"] != before["wide"]
    assert results.runs["no learning"][0].after == results.runs["no learning"][0].before
    assert results.runs["default"][0].after != results.runs["default"][0].before


def test_a_run_of_a_sweep_is_the_recipes_own(done: tuple[Sweep, Results], tmp_path: Path) -> None:
    made, _ = done
    folder = RunFolder.create(tmp_path / "run", recipe=TOY, config={}, command="")
    train(toy_recipe.build(toy_recipe.Config(seed=3), folder), folder)
    theirs = RunFolder.open(made.path("default", 3))
    assert same(state(folder.path), state(theirs.path)) and untimed(folder.metrics()) == untimed(theirs.metrics())
    assert theirs.command == "autotelic run toy/spelling --seed 3"
    assert (theirs.path / "report.html").exists()


def test_finished_runs_are_left_alone_and_others_go_on(done: tuple[Sweep, Results], tmp_path: Path) -> None:
    made, results = done
    shutil.copytree(made.folder, tmp_path / "copy")
    copy = replace(made, folder=tmp_path / "copy")
    gone, torn = copy.path("no learning", 3), copy.path("default", 4)
    shutil.rmtree(gone)
    (torn / "evaluations" / "after.json").unlink()
    shutil.rmtree(torn / "checkpoints" / "iteration-000003")  # killed in its last round
    (torn / "checkpoints" / "latest").write_text("iteration-000002\n")
    before = stamps(copy.folder)
    assert {arm: len(runs) for arm, runs in copy.results().runs.items()} == {"default": 1, "no learning": 1, "wide": 2}

    again = copy.run()
    changed = {name.split("/")[0] for name, time in stamps(copy.folder).items() if before.get(name) != time}
    assert changed == {gone.name, torn.name}
    assert checkpoint.load(gone / "start")["made"] == checkpoint.load(copy.path("default", 3) / "start")["made"]
    assert same(state(torn), state(made.path("default", 4))), "it did not go on as it was"
    for arm, runs in again.runs.items():
        assert [replace(run, cpu_seconds=0) for run in runs] == [replace(r, cpu_seconds=0) for r in results.runs[arm]]


def test_a_half_finished_run_is_resumed_and_not_begun_again(
    done: tuple[Sweep, Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = done
    copy = replace(made, folder=tmp_path / "copy", arms={"default": {}}, seeds=(3,))

    def stopped(actor: Any) -> Any:
        if len(RunFolder.open(copy.path("default", 3)).metrics()) == 3:
            raise KeyboardInterrupt
        return evaluate(actor)

    evaluate = toy_recipe.evaluate
    monkeypatch.setattr(toy_recipe, "evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        copy.run()
    assert not copy.results().runs
    monkeypatch.setattr(toy_recipe, "evaluate", evaluate)
    times = [row["time/cpu"] for row in RunFolder.open(copy.path("default", 3)).metrics()]
    copy.run()
    assert [row["time/cpu"] for row in RunFolder.open(copy.path("default", 3)).metrics()] == times
    assert same(state(copy.path("default", 3)), state(made.path("default", 3)))


def test_processes_make_the_same_runs(done: tuple[Sweep, Results], tmp_path: Path) -> None:
    made, results = done
    arms = {"default": {}, "no learning": {"learn": False}}
    several = replace(made, folder=tmp_path / "several", arms=arms, seeds=(3,), jobs=2).run()
    for arm in arms:
        assert replace(several.runs[arm][0], cpu_seconds=0) == replace(results.runs[arm][0], cpu_seconds=0)
        assert same(state(tmp_path / "several" / made.path(arm, 3).name), state(made.path(arm, 3)))
    one, other = (checkpoint.load(tmp_path / "several" / made.path(arm, 3).name / "start") for arm in arms)
    assert one["made"] == other["made"], "both made a start at once"


def test_costs_and_measures_are_the_runs_own(done: tuple[Sweep, Results]) -> None:
    made, results = done
    run = results.runs["default"][0]
    assert run.rollouts == 3 * 4 * 8 and run.labels == "none"
    rows = RunFolder.open(made.path("default", 3)).metrics()
    assert run.cpu_seconds == round(sum(row["time/cpu"] for row in rows), 1)
    measures, outcomes = run.measures("after"), run.after["outcomes"]
    assert measures["true"] == pytest.approx(sum(outcomes["true"]["success"]) / 12)
    assert measures["mean"] == pytest.approx((measures["true"] + measures["lie"]) / 2)
    assert measures["mean/words"] == pytest.approx((measures["true/words"] + measures["lie/words"]) / 2)
    assert "true/unknown" not in measures, "what is unknown was taken for a number"


def test_results_survive_json(done: tuple[Sweep, Results]) -> None:
    _, results = done
    text = dump(results.to_json())
    assert Results.from_json(json.loads(text)) == results
    assert max(len(line) for line in text.splitlines()) > 30, "every outcome has a line of its own"


def test_draws_that_fill_a_round_count_as_rollouts() -> None:
    stages = [SimpleNamespace(tasks_per_step=count, group_size=8, steps=2) for count in (4, 1)]
    rows: list[dict[str, float]] = [{}, {"dynamic/drawn": 11.0}, {"dynamic/drawn": 2.0}]
    assert attempts(stages, rows) == 32 + 11 * 8 + 2 * 8, "the last round was not done"


# --- bad input -----------------------------------------------------------------


def test_flags_are_words_of_the_command_line() -> None:
    flags = {"lr": 1e-4, "tasks_per_step": 4, "gate": False, "decay": True, "tasks": ("a", "b:3"), "clip": None}
    words = "--lr 0.0001 --tasks-per-step 4 --no-gate --decay --tasks a b:3 --clip None"
    assert words_of(flags) == words.split()


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"default": {"learning_rate": 1}}, "learning-rate"),
        ({"default": {"recipe": "vla/rafd"}}, "vla/raft"),
        ({"default": {"max_steps": "many"}}, "many"),
        ({"a b": {}, "a-b": {}}, "same folder"),
        ({}, "needs an arm"),
    ],
)
def test_bad_arms_are_told_in_a_line_before_anything_runs(arms: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as told:
        Sweep(TOY, {"good": {}, **arms} if arms else {}, (0,), tmp_path / "sweep").run()
    assert "\n" not in str(told.value) and not (tmp_path / "sweep").exists()


def test_a_folder_with_other_flags_is_refused(done: tuple[Sweep, Results]) -> None:
    made, _ = done
    with pytest.raises(UsageError, match="other flags"):
        replace(made, flags={"lr": 0.1}).run()


def test_a_run_that_wrote_its_defaults_by_model_down_has_the_same_flags(tmp_path: Path) -> None:
    recipe = find_recipe("vla/more_imitation")
    job = Job("more", 0, recipe, ("--bc-steps", "7"), False, tmp_path / "run")
    config = job.config()
    command = f"autotelic run {recipe.name} --bc-steps 7"
    folder = RunFolder.create(job.path, recipe=recipe.name, config=asdict(config), command=command)
    job.check(config)
    lr = settled(config, True, folder).lr
    assert config.lr is None and RunFolder.open(job.path).config["lr"] == lr, "or nothing is tried here"
    job.check(config)
    for words in ((), ("--bc-steps", "7", "--lr", str(lr)), ("--bc-steps", "8")):
        with pytest.raises(UsageError, match="other flags"):
            job.check(replace(job, words=words).config())


def test_what_a_recipe_refuses_leaves_no_folder(tmp_path: Path) -> None:
    refused = Sweep(TOY, {"default": {"lr": -1.0}}, (0,), tmp_path)
    with pytest.raises(UsageError, match="default, seed 0: lr is negative: learn"):
        refused.run()
    assert not refused.path("default", 0).exists()
