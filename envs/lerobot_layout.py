"""What a LeRobotDataset's folder says of itself, and the episodes that go into it and come out of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, unknown
from .demonstrations import Demonstration
from .simulator import IMAGES

Floats = NDArray[np.float32]
Frames = NDArray[np.uint8]
SIDECAR = "meta/autotelic.parquet"
PICTURES = ("image", "video")


def feature_of(camera: str) -> str:
    """The feature that holds a camera's pictures, such as "observation.images.wrist"."""
    return camera if camera.startswith("observation.") else IMAGES + camera


@dataclass(frozen=True, eq=False)
class Recording(Demonstration):
    """An episode step by step, successful or not.

    Attributes:
        images: camera -> [N + 1, H, W, 3] uint8, taken with the observations, or None.
        success: whether it succeeded; None when nobody looked. ``settle`` is the number of steps after success first
            held, and 0 in an episode that failed.
        rewards, progress: [N] float32, what each step earned and the progress estimated after it, or None.
    """

    success: bool | None = None
    rewards: Floats | None = None
    progress: Floats | None = None


@dataclass(frozen=True, eq=False)
class Layout:
    """What a dataset says of itself.

    Attributes:
        folder, version: where and which layout ("v3.0").
        fps: rows per second.
        features: by name: {"dtype", "shape", "names"}.
        instructions: sentences by task index.
        rows: of each episode: "length", and of v3.0 also where its rows and pictures are.
        data_path, video_path: patterns of file names; no video_path where there are no videos.
        files_per_chunk: episodes per folder (v2.x).
    """

    folder: Path
    version: str
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    instructions: Mapping[int, str]
    rows: Mapping[int, Mapping[str, Any]]
    data_path: str
    video_path: str | None
    files_per_chunk: int

    @property
    def cameras(self) -> list[str]:
        """Names of the features that are pictures."""
        return [name for name, feature in self.features.items() if feature["dtype"] in PICTURES]

    def feature(self, name: str, *, pictures: bool = False) -> Mapping[str, Any]:
        """A feature by name.

        Raises:
            UsageError: there is none, with the nearest names.
        """
        kind = "camera" if pictures else "feature"
        valid = [n for n, f in self.features.items() if (f["dtype"] in PICTURES) == pictures]
        if name not in valid:
            raise UsageError(f"{self.folder}: {unknown(kind, name, valid)}")
        return self.features[name]


def layout_of_dataset(folder: str | Path) -> Layout:
    """Read what a LeRobotDataset's folder says of itself.

    Raises:
        UsageError: not a LeRobotDataset, a layout before v2.0, or files that are missing.
    """
    folder = Path(folder)
    try:
        info = json.loads((folder / "meta/info.json").read_text())
    except FileNotFoundError:
        raise UsageError(f"{folder} is not a LeRobotDataset: it has no meta/info.json") from None
    except ValueError as error:
        raise UsageError(f"{folder}/meta/info.json is not JSON: {error}") from None
    missing = [key for key in ("codebase_version", "fps", "features", "data_path") if key not in info]
    if missing:
        raise UsageError(f"{folder}/meta/info.json lacks {', '.join(missing)}")
    version = str(info["codebase_version"])
    if version.startswith("v3."):
        instructions, rows = _tasks_v3(folder), _episodes_v3(folder)
    elif version.startswith("v2."):
        tasks, episodes = _lines(folder / "meta/tasks.jsonl"), _lines(folder / "meta/episodes.jsonl")
        instructions = {int(task["task_index"]): str(task["task"]) for task in tasks}
        rows = {int(episode["episode_index"]): episode for episode in episodes}
    else:
        raise UsageError(f"{folder} has layout {version}: v2.x and v3.x are read; convert it with lerobot's own script")
    return Layout(
        folder,
        version,
        float(info["fps"]),
        info["features"],
        instructions,
        rows,
        info["data_path"],
        info.get("video_path"),
        int(info.get("chunks_size", 1000)),
    )


def parquet() -> Any:
    """pyarrow.parquet, or one line that says what to install."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UsageError("LeRobotDataset needs pyarrow: pip install 'autotelic[lerobot-data]'") from None
    return pyarrow.parquet


def read_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    if not path.exists():
        raise UsageError(f"{path} is missing: the dataset is incomplete, fetch it again")
    try:
        return parquet().read_table(path, columns=None if columns is None else list(columns))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise UsageError(f"{path} is missing: the dataset is incomplete, fetch it again")
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _tasks_v3(folder: Path) -> dict[int, str]:
    """The sentence is the table's index, which pandas names "__index_level_0__" unless someone named it."""
    table = read_table(folder / "meta/tasks.parquet")
    name = next((name for name in table.column_names if name != "task_index"), None)
    if name is None or "task_index" not in table.column_names:
        raise UsageError(f"{folder}/meta/tasks.parquet has columns {table.column_names}: no sentence, or no task_index")
    return dict(zip(table["task_index"].to_pylist(), map(str, table[name].to_pylist()), strict=True))


def _episodes_v3(folder: Path) -> dict[int, dict[str, Any]]:
    paths = sorted((folder / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise UsageError(f"{folder}/meta/episodes holds no parquet file: the dataset is incomplete, fetch it again")
    rows: dict[int, dict[str, Any]] = {}
    for path in paths:
        kept = [name for name in parquet().read_schema(path).names if not name.startswith("stats/")]
        rows.update({row["episode_index"]: row for row in read_table(path, kept).to_pylist()})
    return rows
