"""The files of a LeRobotDataset, layout v3.0 (checked against the code of lerobot 0.4.4)."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UsageError
from .demonstrations import Demonstration
from .lerobot_layout import SIDECAR, Frames, Recording, feature_of, parquet

FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA = f"data/{FILE}.parquet"
EPISODES = f"meta/episodes/{FILE}.parquet"
FILES_PER_CHUNK = 1000
MEGABYTES = 100
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
COUNTERS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64"}
COUNTERS |= {"task_index": "int64"}

Columns = dict[str, NDArray[Any]]


def write_folder(
    folder: Path,
    episodes: Sequence[Demonstration],
    *,
    fps: int,
    instruction: str | None,
    robot: str | None,
) -> Path:
    """Write everything beside the folder and move it there when it is whole. See ``write_episodes``."""
    parquet()
    if fps < 1 or fps != int(fps):
        raise UsageError(f"fps is {fps}: LeRobot counts whole rows per second, from 1")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} holds something already: choose another folder")
    features = _features(_checked(episodes))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(partial, episodes, features, fps, instruction, robot)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write(
    folder: Path,
    episodes: Sequence[Demonstration],
    features: Mapping[str, Mapping[str, Any]],
    fps: int,
    instruction: str | None,
    robot: str | None,
) -> None:
    tasks: dict[str, int] = {}
    entries: list[dict[str, Any]] = []
    everything: list[Columns] = []
    writer, number, rows = None, -1, 0
    pictures = [name for name, feature in features.items() if feature["dtype"] == "image"]
    try:
        for index, episode in enumerate(episodes):
            told = episode.instruction if instruction is None else instruction
            columns = _columns(episode, features, index, tasks.setdefault(told, len(tasks)), rows, fps)
            if writer is None or (folder / _at(DATA, number)).stat().st_size >= MEGABYTES * 2**20:
                if writer is not None:
                    writer.close()
                number += 1
                path = folder / _at(DATA, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = parquet().ParquetWriter(path, _schema(features))
            writer.write_table(_table(columns, features))
            length = len(episode.actions)
            entry = {"episode_index": index, "tasks": [told], "length": length}
            entry |= {f"data/{name}": value for name, value in _place(number).items()}
            entry |= {"dataset_from_index": rows, "dataset_to_index": rows + length}
            entry |= {f"meta/episodes/{name}": 0 for name in ("chunk_index", "file_index")}
            for name, column in columns.items():
                entry |= {f"stats/{name}/{key}": v for key, v in _statistics(column, name in pictures).items()}
            entries.append(entry)
            everything.append({name: _thinned(c, 5) if name in pictures else c for name, c in columns.items()})
            rows += length
    finally:
        if writer is not None:
            writer.close()
    statistics = {
        name: _statistics(np.concatenate([columns[name] for columns in everything]), name in pictures)
        for name in features
    }
    _write_meta(folder, entries, tasks, episodes, pictures)
    info = {
        "codebase_version": "v3.0",
        "robot_type": robot,
        "total_episodes": len(entries),
        "total_frames": rows,
        "total_tasks": len(tasks),
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": MEGABYTES,
        "video_files_size_in_mb": 200,
        "fps": int(fps),
        "splits": {"train": f"0:{len(entries)}"},
        "data_path": DATA,
        "video_path": None,
        "features": features,
    }
    for name, content in (("info", info), ("stats", statistics)):
        (folder / f"meta/{name}.json").write_text(json.dumps(content, indent=4))


def _write_meta(
    folder: Path,
    entries: Sequence[Mapping[str, Any]],
    tasks: Mapping[str, int],
    episodes: Sequence[Demonstration],
    pictures: Sequence[str],
) -> None:
    import pyarrow as pa

    path = folder / _at(EPISODES, 0)
    path.parent.mkdir(parents=True)
    parquet().write_table(pa.Table.from_pylist(list(entries)), path)
    # LeRobot reads this one through pandas and looks sentences up in the index, which is told apart by metadata.
    kinds = [("task_index", "task_index", "int64", "int64"), (None, "__index_level_0__", "unicode", "object")]
    keys = ("name", "field_name", "pandas_type", "numpy_type")
    note = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [],
        "columns": [dict(zip(keys, kind, strict=True)) | {"metadata": None} for kind in kinds],
    }
    table = pa.table({"task_index": list(tasks.values()), "__index_level_0__": list(tasks)})
    parquet().write_table(table.replace_schema_metadata({"pandas": json.dumps(note)}), folder / "meta/tasks.parquet")
    more = {
        "episode_index": list(range(len(episodes))),
        "environment": [episode.environment for episode in episodes],
        "seed": [episode.seed for episode in episodes],
        "last_state": [np.asarray(episode.observations[-1], np.float32).tolist() for episode in episodes],
    }
    for name in pictures:
        more[name] = [_encoded(_extras(episode)[name][-1]) for episode in episodes]
    parquet().write_table(
        pa.table(
            {name: pa.array(v, pa.list_(pa.float32()) if name == "last_state" else None) for name, v in more.items()}
        ),
        folder / SIDECAR,
    )


def _place(number: int) -> dict[str, int]:
    return {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}


def _at(pattern: str, number: int) -> str:
    return pattern.format(**_place(number))


# episodes as columns


def _extras(episode: Demonstration) -> dict[str, Any]:
    """What an episode has beyond states and actions; None where it does not. Demonstrations succeeded."""
    success = episode.success if isinstance(episode, Recording) else True
    held = None
    if success is not None:
        held = np.zeros(len(episode.actions), bool)
        held[max(0, len(held) - 1 - episode.settle) if success else len(held) :] = True
    films = {feature_of(camera): film for camera, film in (episode.images or {}).items()}
    return films | {
        "next.success": held,
        "next.reward": getattr(episode, "rewards", None),
        "next.progress": getattr(episode, "progress", None),
    }


def _checked(episodes: Sequence[Demonstration]) -> Sequence[Demonstration]:
    """The episodes, if all have the same sizes and the same things."""
    if not episodes:
        raise UsageError("there are no episodes to write")
    first, had = episodes[0], _extras(episodes[0])
    for index, episode in enumerate(episodes):
        steps, size = len(episode.actions), (np.shape(episode.observations)[1:], np.shape(episode.actions)[1:])
        if steps == 0:
            raise UsageError(f"episode {index} has no steps: leave it out")
        if size != (np.shape(first.observations)[1:], np.shape(first.actions)[1:]) or {len(s) for s in size} != {1}:
            raise UsageError(f"episode {index}: states and actions of shape {size[0]} and {size[1]}; all must be alike")
        if len(episode.observations) != steps + 1:
            raise UsageError(f"episode {index}: {len(episode.observations)} observations for {steps} actions")
        if not (np.isfinite(episode.observations).all() and np.isfinite(episode.actions).all()):
            raise UsageError(f"episode {index}: states or actions hold NaN or infinity")
        have = _extras(episode)
        for name in {**had, **have}:
            value = have.get(name)
            if (value is None) != (had.get(name) is None):
                raise UsageError(f"episodes 0 and {index}: only one of them has {name}; give it to all or to none")
            wanted = steps if name.startswith("next.") else steps + 1
            if value is not None and len(value) != wanted:
                raise UsageError(f"episode {index}: {len(value)} {name} for {steps} actions; expected {wanted}")
        for camera, film in (episode.images or {}).items():
            name = feature_of(camera)
            if "/" in name:
                raise UsageError(f'camera {camera!r}: LeRobot looks for names such as "wrist", without "/"')
            if film.dtype != np.uint8 or film.shape[1:] != had[name].shape[1:] or film.shape[3:] != (3,):
                raise UsageError(
                    f"episode {index}: {name} is {film.dtype} {list(film.shape)}; "
                    "expected uint8 [N+1, H, W, 3], all of one size"
                )
    return episodes


def _features(episodes: Sequence[Demonstration]) -> dict[str, dict[str, Any]]:
    first, extras = episodes[0], _extras(episodes[0])
    features: dict[str, dict[str, Any]] = {
        "observation.state": {"dtype": "float32", "shape": [first.observations.shape[1]], "names": None}
    }
    for camera, film in (first.images or {}).items():
        names = ["height", "width", "channels"]
        features[feature_of(camera)] = {"dtype": "image", "shape": list(film.shape[1:]), "names": names}
    features["action"] = {"dtype": "float32", "shape": [first.actions.shape[1]], "names": None}
    for name, dtype in (("next.reward", "float32"), ("next.progress", "float32"), ("next.success", "bool")):
        if extras[name] is not None:
            features[name] = {"dtype": dtype, "shape": [1], "names": None}
    features["next.done"] = {"dtype": "bool", "shape": [1], "names": None}
    return features | {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in COUNTERS.items()}


def _columns(
    episode: Demonstration, features: Mapping[str, Mapping[str, Any]], index: int, task: int, rows: int, fps: int
) -> Columns:
    """[N, ...] of every feature."""
    steps = len(episode.actions)
    counted = np.arange(steps)
    have: dict[str, Any] = _extras(episode) | {
        "observation.state": episode.observations[:steps],
        "action": episode.actions,
        "next.done": counted == steps - 1,
        "timestamp": counted / fps,
        "frame_index": counted,
        "episode_index": np.full(steps, index),
        "index": rows + counted,
        "task_index": np.full(steps, task),
    }
    return {
        name: have[name][:steps] if feature["dtype"] == "image" else np.asarray(have[name], feature["dtype"])
        for name, feature in features.items()
    }


def _schema(features: Mapping[str, Mapping[str, Any]]) -> Any:
    import pyarrow as pa

    def kind(feature: Mapping[str, Any]) -> Any:
        if feature["dtype"] == "image":
            return pa.struct({"bytes": pa.binary(), "path": pa.string()})
        scalar = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}[feature["dtype"]]
        return scalar if feature["shape"] == [1] else pa.list_(scalar, feature["shape"][0])

    return pa.schema({name: kind(feature) for name, feature in features.items()})


def _table(columns: Columns, features: Mapping[str, Mapping[str, Any]]) -> Any:
    import pyarrow as pa

    schema, arrays = _schema(features), []
    for name, feature in features.items():
        values = columns[name]
        if feature["dtype"] == "image":
            entries: list[Any] = [
                {"bytes": _encoded(frame), "path": f"frame-{place:06d}.png"} for place, frame in enumerate(values)
            ]
        else:
            entries = values.reshape(-1).tolist() if feature["shape"] == [1] else values.tolist()
        arrays.append(pa.array(entries, schema.field(name).type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _encoded(frame: Frames) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def _thinned(frames: NDArray[Any], count: int) -> NDArray[Any]:
    """At most so many pictures, evenly spread: enough for the statistics of their colours."""
    kept: NDArray[Any] = frames[np.linspace(0, len(frames) - 1, min(len(frames), count)).astype(int)]
    return kept


def _statistics(values: NDArray[Any], pictures: bool) -> dict[str, Any]:
    """What LeRobot normalises by: per dimension, or per colour in 0..1 with shape [3, 1, 1]."""
    table = np.asarray(_thinned(values, 100) if pictures else values, np.float64)
    table = table.reshape(-1, 3) / 255 if pictures else table.reshape(len(table), -1)
    found = {"min": table.min(0), "max": table.max(0), "mean": table.mean(0), "std": table.std(0)}
    quantiles = np.quantile(table, list(QUANTILES.values()), axis=0)
    found |= dict(zip(QUANTILES, quantiles, strict=True))
    shaped = {name: (value.reshape(3, 1, 1) if pictures else value).tolist() for name, value in found.items()}
    return shaped | {"count": [len(values)]}
