"""A run goes on with the data that it was begun with, or says that it is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autotelic.errors import UsageError
from autotelic.tables import Table, read_table
from autotelic.trainers.data import remember
from autotelic.trainers.runs.run_folder import RunFolder


def table(path: Path, *prompts: str) -> Table:
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    return read_table(path)


def test_data_is_remembered_by_its_content(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", recipe="r", config={}, command="c")
    first, other = table(tmp_path / "q.jsonl", "a", "b"), table(tmp_path / "e.jsonl", "c")
    assert remember(folder, data=first, eval_data=other) is True
    kept: dict[str, Any] = folder.read_json("config")["data"]
    assert kept["data"] == {"source": str(tmp_path / "q.jsonl"), "rows": 2, "sha256": first.digest}
    again = RunFolder.open(folder.path)
    assert remember(again, data=first, eval_data=other) is False
    assert remember(again, data=table(tmp_path / "copy.jsonl", "a", "b")) is False, "wherever it stands"
    for name, changed in (("data", first), ("eval_data", other)):
        path = Path(changed.source)
        with pytest.raises(UsageError, match=f"{path.name} was changed since") as told:
            remember(again, **{name: table(path, "a", "b", "d")})
        assert "\n" not in str(told.value) and folder.read_json("config")["data"] == kept
    assert remember(again, pairs=other) is True and set(folder.read_json("config")["data"]) == {
        "data",
        "eval_data",
        "pairs",
    }


def test_without_a_folder_nothing_is_remembered(tmp_path: Path) -> None:
    assert remember(None, data=table(tmp_path / "q.jsonl", "a")) is True
