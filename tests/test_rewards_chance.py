"""The reward that knows nothing: drawn per attempt, keyed by run, round, task and number; usable in every modality."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotelic.rewards.names import compose, make_reward
from autotelic.statistics import spearman
from autotelic.trainers.loop import train
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.trainers.scoring import score, tell_state, total_of
from autotelic.types import Rollout, Task, TrainerState

from .test_loop import run_copies, same, untimed
from .toy_run import ITERATIONS, build, folder_at
from .toys import TokenToy, spelling_reward, spelling_tasks

TASKS, ATTEMPTS = 200, 8


@pytest.fixture(autouse=True)
def _outside_a_run() -> Iterator[None]:
    yield
    tell_state(TrainerState())


def attempts(names: range, n: int = ATTEMPTS, output: Any = "a", player: str = "policy") -> list[Rollout]:
    return [Rollout.plain(Task(f"t{i}", "?"), output, player=player) for i in names for _ in range(n)]


def drawn(rollouts: list[Rollout], seed: int = 0, step: int = 0) -> list[float]:
    tell_state(TrainerState(step, 10, seed))
    score(rollouts, make_reward("random"))
    return [total_of(rollout) or 0.0 for rollout in rollouts]


def test_draws_are_uniform_and_differ_between_attempts() -> None:
    found = np.array(drawn(attempts(range(TASKS))))
    assert len(set(found)) == len(found) == TASKS * ATTEMPTS and 0 <= found.min() < found.max() < 1
    deciles = np.histogram(found, 10, (0, 1))[0]
    chi2 = float(((deciles - len(found) / 10) ** 2).sum() / (len(found) / 10))
    assert chi2 < 27.9, "chi-squared with 9 degrees of freedom passes this once in a thousand"


def test_the_key_is_seed_round_player_task_and_number() -> None:
    few = range(4)
    first = drawn(attempts(few))
    assert drawn(attempts(few)) == first
    assert drawn(attempts(few, output="another")) == first, "it looked"
    others = (drawn(attempts(few), seed=1), drawn(attempts(few), step=1), drawn(attempts(few, player="b")))
    assert not {*first} & {value for other in others for value in other}
    turned = [rollout for i in reversed(few) for rollout in attempts(range(i, i + 1))]
    assert drawn(turned) == [value for i in reversed(few) for value in first[ATTEMPTS * i : ATTEMPTS * (i + 1)]]


def test_processes_that_share_the_tasks_draw_what_one_draws() -> None:
    assert drawn(attempts(range(3))) + drawn(attempts(range(3, 7))) == drawn(attempts(range(7)))


def test_an_attempt_that_could_not_be_scored_has_the_minimum() -> None:
    broken = attempts(range(1), 2)
    broken[0].output = torch.tensor([float("nan")])
    assert drawn(broken)[0] == 0.0


def test_it_knows_nothing_of_what_is_right() -> None:
    rollouts = TokenToy(len(spelling_tasks())).act(spelling_tasks(), 400)
    found = drawn(rollouts)
    assert abs(spearman(found, [spelling_reward(r) for r in rollouts])) < 4 / len(rollouts) ** 0.5


def test_a_weighted_one_beside_another_is_recorded_under_its_name() -> None:
    rollouts = attempts(range(2))
    tell_state(TrainerState(0, 1, 5))
    score(rollouts, compose(["random:0.5", "format"]))
    assert all(r.scores["total"] == 0.5 * r.scores["random"] + r.scores["format"] for r in rollouts)  # type: ignore[operator]


def test_a_run_that_is_interrupted_draws_what_it_had_drawn(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "whole")
    train(build(make_reward("random")), folder)
    run_copies("interrupt", str(tmp_path / "stopped"), "random")
    again = RunFolder.open(tmp_path / "stopped")
    assert len(again.metrics()) == ITERATIONS and untimed(again.metrics()) == untimed(folder.metrics())
    assert same(again.load_checkpoint("latest")["now"], folder.load_checkpoint("latest")["now"])
    assert [row["decision"] for row in again.read("gate")] == [row["decision"] for row in folder.read("gate")]
    assert len(folder.read("gate")) == 2, "the gate went on looking"
