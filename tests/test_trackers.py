"""Trackers: standard names beside ours, TensorBoard after a resume, and accelerate's by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from autotelic.errors import UsageError
from autotelic.plugins import named
from autotelic.trainers.runs.callbacks import RunInfo
from autotelic.trainers.runs.trackers import AccelerateTracker, TensorBoard, tracked


def test_metrics_have_the_fields_names_beside_ours() -> None:
    metrics = {
        "objective/kl": 0.5,
        "objective/clip_fraction": 0.1,
        "rollouts": 40.0,
        "time/act": 3.0,
        "time/learn": 5.0,
    }
    values = tracked(metrics | {"reward": math.nan})
    assert values["objective/kl"] == values["train/approx_kl"] == 0.5
    assert values["train/clip_fraction"] == 0.1 and values["train/steps_per_second"] == 5.0
    assert "reward" not in values and "train/reward" not in values, "what is not finite is left out"


def test_rewound_tensorboard_steps_are_purged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done, rewards in ((0, (1.0, 2.0, 3.0)), (1, (20.0,))):
        board = TensorBoard()
        board.on_start(RunInfo(tmp_path, "toy", iteration=done))
        for i, reward in enumerate(rewards, done + 1):
            board.on_iteration(i, {"reward": reward})
        board.on_end()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(1, 1.0), (2, 20.0)]


class Recorded:
    """Stands for one of accelerate's trackers."""

    requires_logging_directory = False
    made: list[Any] = []  # noqa: RUF012

    def __init__(self, project: str) -> None:
        self.project, self.lines = project, list[Any]()
        self.made.append(self)

    def start(self) -> None:
        self.lines.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.lines.append(values)

    def log(self, values: dict[str, float], step: int) -> None:
        self.lines.append((step, values))

    def finish(self) -> None:
        self.lines.append("finish")


def test_accelerates_trackers_are_told_configuration_metrics_and_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import tracking

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorded)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["wandb"])
    tracker = named("tracker", "wandb")()
    tracker.on_start(RunInfo(tmp_path / "run", "vlm/grpo", {"lr": 1e-3, "rewards": ("exact",)}))
    tracker.on_iteration(1, {"reward": 0.25})
    tracker.on_evaluation(1, "after", {"outcomes": {"easy": {"success": [1, 0]}, "hard": {"success": [0, 0]}}})
    tracker.on_end()
    (made,) = Recorded.made
    assert made.lines == [
        "start",
        {"run": "run", "recipe": "vlm/grpo", "lr": 1e-3, "rewards": "('exact',)"},
        (1, {"reward": 0.25, "train/reward": 0.25}),
        (1, {"eval/easy": 0.5, "eval/hard": 0.0, "eval/mean": 0.25}),
        "finish",
    ]


def test_a_tracker_that_is_not_there_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match='unknown tracker "wnadb": did you mean wandb'):
        AccelerateTracker("wnadb")
    with pytest.raises(UsageError, match="the tracker aim is not installed: pip install aim"):
        AccelerateTracker("aim")
