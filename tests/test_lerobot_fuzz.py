"""Damaged LeRobotDatasets: whatever is wrong with the files, reading ends in one line or gives whole recordings."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotelic.envs.lerobot_dataset import action_scale, read_demonstrations
from autotelic.errors import UsageError

from .robot_worlds import DATA, EPISODES, altered, dataset, older, without

pytest.importorskip("pyarrow")

STRANGE: tuple[Any, ...] = (None, True, -1, 0, 3, 1e400, float("nan"), "", "4", "x", [], [1, 2], {}, {"a": 1}, "../..")
COLUMNS = ("observation.state", "action", "task_index", "episode_index", "timestamp", "observation.images.main")


def tried(folder: Path) -> str:
    """How reading ended: recordings that are whole, or one line."""
    ended = []
    for ask in (read_demonstrations, action_scale):
        how: dict[str, Any] = {"cameras": ["main"]} if ask is read_demonstrations and "older" not in folder.name else {}
        try:
            found: Any = ask(folder, **how)
        except UsageError as error:
            assert str(error) and "\n" not in str(error), "one line"
            ended.append("refused")
            continue
        for each in found if isinstance(found, list) else ():
            assert len(each.observations) == len(each.actions) + 1 and len(each.actions)
            assert np.isfinite(each.observations).all() and np.abs(each.actions).max() <= 1
        ended.append("read")
    return ended[0]


@pytest.mark.parametrize("seed", range(4))
def test_strange_values_in_what_a_dataset_says_of_itself(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    made = dataset(tmp_path, side=8)
    path = made / "meta/info.json"
    whole = json.loads(path.read_text())
    ends = set()
    for _ in range(40):
        info = json.loads(json.dumps(whole))
        place = choose.choice([info, info["features"], *info["features"].values()])
        place[choose.choice(sorted(place))] = choose.choice(STRANGE)
        path.write_text(json.dumps(info))
        ends.add(tried(made))
    assert ends == {"read", "refused"}


@pytest.mark.parametrize("seed", range(4))
def test_strange_values_in_columns(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    for trial in range(6):
        (tmp_path / str(trial)).mkdir()
        made = dataset(tmp_path / str(trial), side=8)
        file, column = choose.choice(
            [(DATA, name) for name in COLUMNS] + [(EPISODES, "length"), (EPISODES, "episode_index")]
        )
        if choose.random() < 0.3:
            tried(without(made, column, file))
            continue

        def strange(values: list[Any], choose: random.Random = choose) -> list[Any]:
            row, value = choose.randrange(len(values)), values[0]
            if isinstance(value, list):
                other: Any = choose.choice([None, [], value[:1], [*value, 1.0], [float("inf")] * len(value)])
            elif isinstance(value, dict):
                other = choose.choice([None, {"bytes": None, "path": None}, {"bytes": b"\x89PNG", "path": "x"}])
            else:
                other = choose.choice([None, -1, 7, 2**40])
            return [*values[:row], other, *values[row + 1 :]]

        tried(altered(made, column, strange, file))


@pytest.mark.parametrize("seed", range(3))
def test_files_that_are_cut_off_or_overwritten(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    for trial, make in enumerate((lambda f: dataset(f, side=8), older)):
        (tmp_path / str(trial)).mkdir()
        made: Path = make(tmp_path / str(trial))
        files = sorted(path for path in made.rglob("*") if path.is_file())
        kept = {path: path.read_bytes() for path in files}
        for _ in range(25):
            path = choose.choice(files)
            data = bytearray(kept[path])
            if choose.random() < 0.4:
                data = data[: choose.randrange(len(data))]
            else:
                for _ in range(choose.randrange(1, 6)):
                    data[choose.randrange(len(data))] = choose.randrange(256)
            path.write_bytes(data)
            tried(made)
            path.write_bytes(kept[path])
        assert tried(made) == "read", "mended"
