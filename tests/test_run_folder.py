"""A run folder keeps what a run writes, through kills, rewinds and pruning."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autotelic.errors import UsageError
from autotelic.trainers.runs.checkpoint import CheckpointError
from autotelic.trainers.runs.records import rollouts_from_state, rollouts_state
from autotelic.trainers.runs.run_folder import RunFolder
from autotelic.types import Rollout, Task


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    config = {"seed": 3, "tasks": ("push-v3",), "path": tmp_path}
    return RunFolder.create(tmp_path / "run", recipe="vla/evolve_vla", config=config, command="autotelic run ...")


def test_create_then_open(folder: RunFolder) -> None:
    again = RunFolder.open(folder.path)
    assert again.recipe == "vla/evolve_vla" and again.config["tasks"] == ["push-v3"]
    again.describe(label_account="gate_labels: none")
    config = again.read_json("config")
    assert config["label_account"] == "gate_labels: none" and config["versions"]["torch"] and config["created"]


def test_folders_of_others_are_refused(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="autotelic resume"):
        RunFolder.create(folder.path, recipe="r", config={}, command="c")
    with pytest.raises(UsageError, match="not an empty folder"):
        RunFolder.create(tmp_path, recipe="r", config={}, command="c")
    with pytest.raises(UsageError, match=r"unknown run .*rum.* did you mean .*run"):
        RunFolder.open(tmp_path / "rum")


def test_metrics_keep_every_bit_and_nan(folder: RunFolder) -> None:
    values = {"reward": 0.1 + 0.2, "success/push-v3": math.nan, "objective/loss": -math.inf, "time/act": np.float32(2)}
    folder.log(1, values)
    (record,) = folder.metrics()
    assert record["iteration"] == 1 and record["reward"] == 0.1 + 0.2 and record["time/act"] == 2.0
    assert math.isnan(record["success/push-v3"]) and record["objective/loss"] == -math.inf
    json.loads((folder.path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)


def test_records_need_an_iteration(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="iteration"):
        folder.append("gate", {"decision": "keep"})
    folder.append("gate", {"iteration": 1, "evidence": {"push": {"upper": torch.tensor(0.5)}}, "harmed": ("push",)})
    assert folder.read("gate") == [{"iteration": 1, "evidence": {"push": {"upper": 0.5}}, "harmed": ["push"]}]
    assert folder.read("nothing") == [] and folder.read_json("evaluations/before") is None


def test_rewind_drops_what_came_after_the_checkpoint(folder: RunFolder) -> None:
    for i in range(1, 5):
        folder.append("metrics", {"iteration": i, "reward": i / 3})
        folder.append("gate", {"iteration": i, "decision": "keep"})
        folder.save_checkpoint(i, {"i": i}, best=i == 4, keep=9)
    before = (folder.path / "metrics.jsonl").read_bytes()
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 5, "rew')  # torn by a kill
    assert len(folder.metrics()) == 4

    folder.rewind(4)
    assert (folder.path / "metrics.jsonl").read_bytes() == before
    folder.rewind(2)
    assert [record["iteration"] for record in folder.read("gate")] == [1, 2]
    assert folder.checkpoints() == ["iteration-000001", "iteration-000002"]
    with pytest.raises(CheckpointError, match="no best checkpoint; there is iteration-000001, iteration-000002"):
        folder.load_checkpoint("best")
    folder.append("metrics", {"iteration": 3, "reward": 1.0})
    assert [record["iteration"] for record in folder.metrics()] == [1, 2, 3]


def test_old_checkpoints_go_but_never_the_best_or_the_latest(folder: RunFolder) -> None:
    for i in range(1, 7):
        folder.save_checkpoint(i, {"i": i, "w": torch.ones(2) * i}, best=i == 2)
    assert folder.checkpoints() == ["iteration-000002", "iteration-000005", "iteration-000006"]
    assert folder.load_checkpoint()["i"] == 6 and folder.load_checkpoint("best")["i"] == 2
    assert folder.load_checkpoint("iteration-000005")["w"].tolist() == [5, 5]
    with pytest.raises(CheckpointError, match="use iteration-000006"):
        folder.load_checkpoint("iteration-000001")


def test_a_new_run_has_no_checkpoint(folder: RunFolder) -> None:
    with pytest.raises(CheckpointError, match="no latest checkpoint; there is none"):
        folder.load_checkpoint()


def rollouts() -> list[Rollout]:
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    task = Task("t", "push it", images=(image,), category="push", seed=4, extra={"goal": np.ones(3), "sim": object()})
    plain = Rollout(
        task,
        {"states": np.zeros((2, 3), np.float32)},
        {"actions": torch.randn(2, 4)},
        torch.randn(2),
        torch.tensor([True, False]),
        torch.tensor([0, 1]),
        train_task=Task("u", "closed book"),
        group="g",
        states=("s0", "s1"),
        scores={"total": 0.5, "per_segment": [0.1, None], "absent": None, "tensor": torch.ones(2)},
        info={"length": 2, "why": object()},
    )
    demonstration = Rollout(task, object(), {}, None, torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.long))
    return [plain, demonstration]


def test_rollouts_round_trip_without_pickle(folder: RunFolder) -> None:
    saved = rollouts()
    path = folder.save_rollouts("error-000003", saved)
    plain, demonstration = folder.load_rollouts(path)
    assert folder.load_rollouts("error-000003")[0].task.id == "t"

    assert torch.equal(plain.payload["actions"], saved[0].payload["actions"])
    assert plain.log_probs is not None and torch.equal(plain.log_probs, saved[0].log_probs)
    assert plain.mask.tolist() == [True, False] and plain.segments.tolist() == [0, 1]
    assert plain.output["states"].dtype == np.float32 and plain.output["states"].shape == (2, 3)
    assert plain.scores["per_segment"] == [0.1, None] and plain.scores["tensor"].tolist() == [1, 1]
    assert plain.info == {"length": 2} and plain.group == "g" and list(plain.states) == ["s0", "s1"]
    assert plain.train_task is not None and plain.train_task.prompt == "closed book"
    assert plain.task.category == "push" and list(plain.task.extra) == ["goal"]
    assert plain.task.images[0].tobytes() == saved[0].task.images[0].tobytes()
    assert demonstration.task is plain.task, "a shared task is stored once and shared again"
    assert demonstration.output is None and demonstration.log_probs is None


def test_a_payload_that_cannot_be_written_is_refused() -> None:
    broken = rollouts()[0]
    broken.payload = {"simulator": object()}  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="object"):
        rollouts_state([broken])
    assert rollouts_from_state(rollouts_state([])) == []
