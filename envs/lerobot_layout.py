"""What a LeRobotDataset's folder says of itself, and the episodes that go into it and come out of it."""

from __future__ import annotations

import codecs
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, unknown
from ..json_files import object_of, read_object
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
        return [name for name, feature in self.features.items() if feature.get("dtype") in PICTURES]

    def feature(self, name: str, *, pictures: bool = False) -> Mapping[str, Any]:
        """A feature by name.

        Raises:
            UsageError: there is none, with the nearest names, or it says neither type nor shape.
        """
        kind = "camera" if pictures else "feature"
        valid = [n for n, f in self.features.items() if (f.get("dtype") in PICTURES) == pictures]
        if name not in valid:
            raise UsageError(f"{self.folder}: {unknown(kind, name, valid)}")
        lacking = [key for key in ("dtype", "shape") if self.features[name].get(key) is None]
        if lacking:
            raise UsageError(f"{self.folder}/meta/info.json: feature {name!r} has no {lacking[0]}")
        return self.features[name]

    def shape(self, name: str, *, pictures: bool = False) -> tuple[int, ...]:
        """The shape of a feature's rows.

        Raises:
            UsageError: there is no such feature, or its shape is not made of numbers.
        """
        shape = self.feature(name, pictures=pictures)["shape"]
        try:
            sides = tuple(int(side) for side in (shape if isinstance(shape, list | tuple) else [shape]))
        except (TypeError, ValueError, OverflowError):
            sides = (-1,)
        if min(sides, default=1) < 1:
            raise UsageError(f"{self.folder}/meta/info.json: feature {name!r} has the shape {shape!r}")
        return sides

    def data_of(self, episode: int) -> Path:
        """The file that holds an episode's rows.

        Raises:
            UsageError: its entry in meta does not say.
        """
        if not self.version.startswith("v3"):
            return self._filled(self.data_path, self._numbers(episode))
        names = ("chunk_index", "file_index")
        return self._filled(self.data_path, {name: self.entry(episode, f"data/{name}") for name in names})

    def video_of(self, episode: int, camera: str) -> tuple[Path, float]:
        """The file that holds a camera's pictures of an episode, and its begin in seconds; see ``data_of``."""
        if not self.version.startswith("v3"):
            return self._filled(str(self.video_path), self._numbers(episode) | {"video_key": camera}), 0.0
        told = {name: self.entry(episode, f"videos/{camera}/{name}") for name in ("chunk_index", "file_index")}
        start = float(self.entry(episode, f"videos/{camera}/from_timestamp"))
        return self._filled(str(self.video_path), told | {"video_key": camera}), start

    def entry(self, episode: int, name: str) -> Any:
        """What meta says of an episode.

        Raises:
            UsageError: it does not say that.
        """
        found = self.rows[episode].get(name)
        if found is None:
            raise UsageError(f"{self.folder}: the entry of episode {episode} in meta has no {name!r}")
        return found

    def inside(self, path: str) -> Path | None:
        """A path within the folder; None where it leads out of it."""
        place = self.folder / path
        return place if place.resolve().is_relative_to(self.folder.resolve()) else None

    def _numbers(self, episode: int) -> dict[str, Any]:
        return {"episode_index": episode, "episode_chunk": episode // self.files_per_chunk}

    def _filled(self, pattern: str, names: Mapping[str, Any]) -> Path:
        which = "data_path" if pattern == self.data_path else "video_path"
        try:
            path = self.inside(pattern.format(**names))
        except (KeyError, ValueError, IndexError) as error:
            asked = f"{type(error).__name__}: {error}"
            raise UsageError(f"{self.folder}/meta/info.json: {which} {pattern!r} cannot be filled ({asked})") from None
        if path is None:
            raise UsageError(f"{self.folder}/meta/info.json: {which} {pattern!r} leads out of the folder")
        return path


class UnknownLayout(UsageError):
    """A LeRobotDataset of a layout that is not known here."""


def layout_of_dataset(folder: str | Path) -> Layout:
    """Read what a LeRobotDataset's folder says of itself.

    Raises:
        UsageError: not a LeRobotDataset, or files that are missing; UnknownLayout: a layout but v2 and v3.
    """
    folder = Path(folder)
    try:
        info = read_object(folder / "meta/info.json", "codebase_version", "fps", "features", "data_path")
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder} is not a LeRobotDataset: it has no meta/info.json") from None
    features = info["features"]
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise UsageError(f"{folder}/meta/info.json: its features are no objects by name")
    version = str(info["codebase_version"])
    if version.startswith("v3."):
        instructions, rows = _tasks_v3(folder), _episodes_v3(folder)
    elif version.startswith("v2."):
        tasks = _lines(folder / "meta/tasks.jsonl", ("task_index", "task"))
        episodes = _lines(folder / "meta/episodes.jsonl", ("episode_index", "length"))
        instructions = {task["task_index"]: str(task["task"]) for task in tasks}
        rows = {episode["episode_index"]: episode for episode in episodes}
    else:
        raise UnknownLayout(
            f"{folder} has layout {version}: v2.x and v3.x are read; convert it with lerobot's own script"
        )
    return Layout(
        folder,
        version,
        _number(info["fps"], f"{folder}/meta/info.json: fps"),
        features,
        instructions,
        rows,
        str(info["data_path"]),
        info.get("video_path"),
        int(_number(info.get("chunks_size") or 1000, f"{folder}/meta/info.json: chunks_size")),
    )


def _number(value: Any, what: str) -> float:
    """A number above 0, as JSON or in a string."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise UsageError(f"{what} is {value!r}; expected a number above 0")
    return number


def parquet() -> Any:
    """pyarrow.parquet, or one line that says what to install."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UsageError("LeRobotDataset needs pyarrow: pip install 'autotelic[lerobot-data]'") from None
    return pyarrow.parquet


def opened(path: Path) -> Any:
    """A parquet file.

    Raises:
        UsageError: it is missing, or is none.
    """
    if not path.exists():
        raise UsageError(f"{path} is missing: the dataset is incomplete, fetch it again")
    reader = parquet()
    try:
        return reader.ParquetFile(path)
    except Exception as error:
        raise unreadable(path, error) from None


def read_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    """A parquet file's table; raises as ``opened``."""
    file = opened(path)
    try:
        return file.read(columns=None if columns is None else list(columns))
    except Exception as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> UsageError:
    """What damaged files make a library raise, of whatever kind, in one line."""
    return UsageError(f"{path} cannot be read: {''.join(str(error).splitlines()[:1])}")


def _lines(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, each with what is needed: all but "task" are whole numbers."""
    if not path.exists():
        raise UsageError(f"{path} is missing: the dataset is incomplete, fetch it again")
    found = []
    # Only a line feed ends a line: str.splitlines would cut sentences at U+2028 and its like.
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if not line.strip():
            continue
        row = object_of(line, f"{path}, line {number}")
        if any(name not in row for name in needed):
            raise UsageError(f"{path}, line {number} is no object with {' and '.join(needed)}")
        try:
            found.append(row | {name: int(row[name]) for name in needed if name != "task"})
        except (TypeError, ValueError):
            raise UsageError(f"{path}, line {number}: {needed[0]} is no whole number") from None
    return found


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
        kept = [name for name in opened(path).schema_arrow.names if not name.startswith("stats/")]
        lacking = [name for name in ("episode_index", "length") if name not in kept]
        if lacking:
            raise UsageError(f"{path} has no column {lacking[0]}")
        for number, row in enumerate(read_table(path, kept).to_pylist()):
            wrong = [name for name in ("episode_index", "length") if not isinstance(row[name], int) or row[name] < 0]
            if wrong:
                raise UsageError(f"{path}, row {number}: {wrong[0]} is {row[wrong[0]]!r}")
            rows[row["episode_index"]] = row
    return rows
