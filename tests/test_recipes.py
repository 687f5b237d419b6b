"""Recipes for robots from the command line: their debug presets, the seal, the splits, a kill and a resume."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotelic.cli import main
from autotelic.envs.oracle import OracleSealed
from autotelic.envs.pool import EpisodeRequest, Pool
from autotelic.envs.splits import seeds
from autotelic.recipes import all_recipes, config_from_json
from autotelic.rewards.progress.critics import ProgressCritic
from autotelic.rewards.progress.end_conditions import EndConditions
from autotelic.rewards.progress.estimates import MeanAdvance, MeanProgress
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.trainers.scoring import RewardError, score
from autotelic.vla.environments import counts, record
from autotelic.vla.policy import ActionPolicy
from autotelic.vla.recipes import best_progress, evolve_vla
from autotelic.vla.setting import Setting

from .initial_states import assert_disjoint
from .test_loop import assert_same_run

EVOLVE = ("vla/evolve_vla", "--debug", "--workers", "1", "--max-steps", "4")


def start(path: Path) -> subprocess.Popen[str]:
    """The command line as a person types it."""
    command = [sys.executable, "-m", "autotelic", "run", *EVOLVE, "--output-dir", str(path)]
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=quiet)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """evolve_vla from the command line, at one go."""
    path = tmp_path_factory.mktemp("evolve_vla") / "run"
    process = start(path)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return path


def assert_complete(path: Path, iterations: int) -> None:
    folder = RunFolder.open(path)
    assert [row["iteration"] for row in folder.metrics()] == list(range(1, iterations + 1))
    for name in ("before", "after"):
        outcomes = folder.read_json(f"evaluations/{name}")["outcomes"]
        assert set(outcomes) == {"reach-v3", "drawer-close-v3"}
        assert all(len(row["success"]) == 2 for row in outcomes.values())
    assert "<html" in (path / "report.html").read_text()
    assert (path / "policy" / "model.safetensors").exists() and (path / "README.md").exists()


def test_evolve_vla_runs_from_the_command_line(run: Path) -> None:
    assert_complete(run, 4)
    folder = RunFolder.open(run)
    assert {"reward", "category/reach-v3", "objective/loss"} <= folder.metrics()[-1].keys()
    assert [row["iteration"] for row in folder.read("gate")] == [1, 2, 3, 4]
    assert "gate_labels: none" in (run / "README.md").read_text()


def test_a_reward_that_knows_nothing_is_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    rows = []
    for workers in ("1", "2"):
        path, words = tmp_path / workers, ("--workers", workers, "--rewards", "random")
        assert main(["run", "vla/evolve_vla", "--debug", *words, "--output-dir", str(path)]) == 0
        assert_complete(path, 2)
        rows.append(RunFolder.open(path).metrics())
    one, two = ([{k: v for k, v in row.items() if not k.startswith("time/")} for row in each] for each in rows)
    assert one == two and all(0.2 < row["reward"] < 0.8 and row["objective/grad_norm"] > 0 for row in one)


@pytest.mark.skipif(find_library("OSMesa") is None, reason="libosmesa6 is not installed")
def test_evolve_vla_learns_from_frames(tmp_path: Path) -> None:
    path, quick = tmp_path / "run", ("--obs-type", "pixels", "--bc-steps", "4", "--workers", "1")
    assert main(["run", "vla/evolve_vla", "--debug", *quick, "--output-dir", str(path)]) == 0
    assert_complete(path, 2)
    assert {file.name for file in path.glob("critic-*")} == {"critic-reward"}
    assert RunFolder.open(path).read("gate") == [], "the kind of critic that compares rewards: none is left to judge"
    assert ActionPolicy.from_pretrained(str(path / "policy")).model.vision.frozen


@pytest.mark.parametrize("name", sorted(n for n in all_recipes() if n.startswith("vla/") and n != "vla/evolve_vla"))
def test_debug_presets_run_two_iterations(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    assert main(["run", name, "--debug", "--workers", "1", "--output-dir", str(path)]) == 0
    assert_complete(path, 2)
    assert "before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("critic", "model", "judge"),
    [
        ("advance", MeanAdvance, ProgressCritic),
        ("own", MeanProgress, ProgressCritic),
        ("network", ProgressCritic, EndConditions),
        ("pairs", ProgressCritic, EndConditions),
        ("ends", EndConditions, ProgressCritic),
    ],
)
def test_the_judge_at_the_gate_is_of_another_kind_than_the_estimator(
    critic: str, model: type, judge: type, tmp_path: Path
) -> None:
    config = replace(evolve_vla.Config.tiny(), critic=critic, workers=1)
    folder = RunFolder.create(tmp_path / "run", recipe="vla/evolve_vla", config={}, command="")
    with closing(evolve_vla.build(config, folder)) as experiment:
        stage: Any = experiment.stages[0]
        estimator = stage.actor.estimator
        assert type(estimator.model) is model and type(stage.gate.judge.model) is judge
        # an episode is over where the task's own demonstrations were when they succeeded
        assert set(estimator.threshold) == {t.prompt for t in stage.gate.probes}
        assert all(0 < value < 1 for value in estimator.threshold.values()) and len(estimator.threshold) == 2
        assert stage.reward.threshold == 1.0, "v itself is paid"


def test_one_threshold_for_all_tasks_can_be_said(tmp_path: Path) -> None:
    config = replace(evolve_vla.Config.tiny(), critic="ends", threshold=0.7, termination=False, workers=1)
    folder = RunFolder.create(tmp_path / "run", recipe="vla/evolve_vla", config={}, command="")
    with closing(evolve_vla.build(config, folder)) as experiment:
        stage: Any = experiment.stages[0]
        assert stage.actor.estimator.threshold is None, "and nobody has to look"
    paid = best_progress.Config.tiny(critic="ends", threshold=0.7, workers=1)
    with closing(best_progress.build(paid, folder)) as experiment:
        stage = experiment.stages[0]
        assert stage.reward.threshold == stage.actor.estimator.threshold == 0.7


def test_a_killed_run_ends_as_if_nothing_had_happened(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    process, metrics = start(path), path / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert not (path / "evaluations" / "after.json").exists(), "it was killed on the way"
    assert main(["resume", str(path)]) == 0
    assert_complete(path, 4)
    assert_same_run(RunFolder.open(run), RunFolder.open(path))


# trust


def test_evolve_vla_cannot_read_the_oracle_while_it_learns(run: Path) -> None:
    folder = RunFolder.open(run)
    experiment = evolve_vla.build(config_from_json(evolve_vla.Config, folder.config), folder)
    (stage,) = experiment.stages
    actor: Any = stage.actor

    def peeks(tasks: Sequence[Any], **_: Any) -> list[float]:
        requests = [EpisodeRequest(task.extra["environment"], task.seed, 0) for task in tasks]
        return [float(bool(e.success)) for e in actor.pool.run(requests, lambda *_: None, oracle=True)]

    try:
        with stage.guard():
            tasks = stage.curriculum.sample(2)
            with pytest.raises(OracleSealed, match=r"success.*sealed because this recipe learns without an oracle"):
                actor.act(tasks, 2, oracle=True)
            rollouts = actor.act(tasks, 2)
            assert all(rollout.output.success is None for rollout in rollouts)
            with pytest.raises(RewardError, match=r"reward peeks: success.*sealed because"):
                score(rollouts, peeks)
            assert score(rollouts, stage.reward)["reward"] >= 0, "its own reward needs no oracle"
        assert "reward" in score(rollouts, peeks), "outside, evaluation may look"
    finally:
        experiment.close()


def test_training_probe_evaluation_and_demonstration_states_are_disjoint() -> None:
    config = evolve_vla.Config()
    names = tuple(counts(config.tasks, config))
    assert len(names) == 5
    with Pool(names, workers=1) as pool:
        wanted = counts(config.tasks, config)
        demonstrations = {name: record(pool, name, count, config) for name, count in wanted.items()}
        setting = Setting(config, names, pool, demonstrations, policy=None, encoded=[])  # type: ignore[arg-type]
        for name, source in zip(names, setting.sources().values(), strict=True):
            probes = [t.seed for t in setting.probes() if t.extra["environment"] == name]
            splits = [
                [source(i).seed for i in range(8)],
                probes,
                seeds("eval", 20, config.eval_offset),
                [demonstration.seed for demonstration in demonstrations[name]],
            ]
            assert all(splits)
            for i, split in enumerate(splits[:-1]):
                assert_disjoint(pool, name, split, [seed for other in splits[i + 1 :] for seed in other])
            with pytest.raises(AssertionError, match="have the same initial state"):
                assert_disjoint(pool, name, splits[0][:2], splits[0][1:3])
