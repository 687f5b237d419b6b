"""LeRobot's own reader, as a stand-in with its signatures: it and the reader here give the same recordings."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autotelic.envs.lerobot_dataset import action_scale, dataset_at, read_demonstrations
from autotelic.envs.lerobot_own import OwnRows
from autotelic.errors import UsageError

from .robot_worlds import DATA, altered, dataset, put, told

pq = pytest.importorskip("pyarrow.parquet")
HOME: dict[str, Path] = {}
"""What the stand-in finds on the hub."""


class LeRobotDatasetMetadata:
    def __init__(self, repo_id: str, root: Path | None = None) -> None:
        self.root = HOME[repo_id] if root is None else root
        self.info = json.loads((self.root / "meta/info.json").read_text())
        self.fps, self.features = self.info["fps"], self.info["features"]
        tasks = pq.read_table(self.root / "meta/tasks.parquet").to_pylist()
        table = {row["__index_level_0__"]: {"task_index": row["task_index"]} for row in tasks}
        self.tasks = SimpleNamespace(to_dict=lambda how: table if how == "index" else None)
        self.episodes = pq.read_table(self.root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()


class LeRobotDataset:
    opened: list[Sequence[int]] = []  # noqa: RUF012

    def __init__(self, repo_id: str, root: Path | None = None, episodes: Sequence[int] | None = None) -> None:
        self.meta = LeRobotDatasetMetadata(repo_id, root)
        assert episodes is not None, "nobody asks for all of them"
        self.opened.append(episodes)
        rows = pq.read_table(self.meta.root / DATA).to_pylist()
        self.rows = [row for row in rows if row["episode_index"] in episodes]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = dict(self.rows[place])
        for name, feature in self.meta.features.items():
            if feature["dtype"] == "image":
                with Image.open(io.BytesIO(row[name]["bytes"])) as picture:
                    row[name] = np.asarray(picture, np.float32).transpose(2, 0, 1) / 255
        return row | {"task": "go"}


@pytest.fixture
def lerobot(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("lerobot.datasets.lerobot_dataset")
    vars(module).update(LeRobotDataset=LeRobotDataset, LeRobotDatasetMetadata=LeRobotDatasetMetadata)
    package = ModuleType("lerobot.datasets")
    vars(package).update(lerobot_dataset=module)
    for name, each in {"lerobot": ModuleType("lerobot"), package.__name__: package, module.__name__: module}.items():
        monkeypatch.setitem(sys.modules, name, each)
    LeRobotDataset.opened.clear()


def test_both_readers_give_the_same(lerobot: None, tmp_path: Path) -> None:
    folder = dataset(tmp_path, (6, 4), side=16)
    mine = read_demonstrations(folder, cameras=["main"], environment="x", size=8)
    scale = action_scale(folder)
    told(folder, codebase_version="v4.0")
    assert isinstance(dataset_at(folder)[1], OwnRows)
    theirs = read_demonstrations(folder, cameras=["main"], environment="x", size=8)
    for one, other in zip(mine, theirs, strict=True):
        for name, value in vars(one).items():
            if name != "images":
                np.testing.assert_array_equal(value, getattr(other, name), name)
        assert one.images is not None and other.images is not None
        np.testing.assert_array_equal(one.images["main"], other.images["main"])
    np.testing.assert_array_equal(action_scale(folder).high, scale.high)


def test_of_the_hub_only_what_is_used_is_opened(lerobot: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HOME, "somebody/pushes", dataset(tmp_path, (6, 4, 5)))
    assert [len(found.actions) for found in read_demonstrations("somebody/pushes", count=2)] == [5, 3]
    assert LeRobotDataset.opened == [[0], [1]]


def test_what_lerobot_reads_is_checked_too(lerobot: None, tmp_path: Path) -> None:
    folder = told(altered(dataset(tmp_path), "action", put(8, [np.nan, 0.1])), codebase_version="v4.0")
    with pytest.raises(UsageError, match="episode 1, row 2: 'action' holds nan"):
        read_demonstrations(folder)
    with pytest.raises(UsageError, match=r"lerobot cannot read somebody/nothing \(KeyError"):
        read_demonstrations("somebody/nothing")


def test_without_lerobot_the_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(UsageError, match=r"somebody/pushes is read by lerobot alone.*hf download --repo-type dataset"):
        read_demonstrations("somebody/pushes")
    with pytest.raises(UsageError, match=r"has layout v4\.0: v2\.x and v3\.x are read.*autotelic\[lerobot\]"):
        read_demonstrations(told(dataset(tmp_path), codebase_version="v4.0"))
