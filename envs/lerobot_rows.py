"""Rows of a LeRobotDataset's episodes: numbers, checked, and pictures, decoded; of the episodes asked for alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UsageError
from .lerobot_layout import Floats, Frames, Layout, opened, unreadable
from .video import squared

LARGEST = 1e9
"""Beyond it float32 counts in steps of more than a hundred, and squares soon overflow: no state of a robot."""


class Rows:
    """The rows of a dataset's episodes, read a row group at a time; one file and one group are kept.

    Files that LeRobot writes have a row group per episode, so an episode that nobody asks for is not read.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._file: tuple[Path, Any, list[Any]] | None = None
        self._group: tuple[Any, Any] = (None, None)

    def of(self, episode: int, columns: Sequence[str]) -> Any:
        """An episode's rows as a table.

        Raises:
            UsageError: a file or column is missing, or there are more or fewer rows than meta says.
        """
        import pyarrow as pa
        import pyarrow.compute as compute

        path, file, episodes = self._opened(self.layout.data_of(episode))
        lacking = [name for name in columns if name not in file.schema_arrow.names]
        if lacking:
            raise UsageError(f"{path} has no column {lacking[0]!r}")
        wanted = list(dict.fromkeys(columns))
        parts = []
        for number, of in enumerate(episodes):
            mask = compute.equal(of, episode)
            if compute.any(mask).as_py():
                parts.append(self._read(path, file, number, wanted).filter(mask))
        count, length = sum(map(len, parts)), int(self.layout.entry(episode, "length"))
        if count != length:
            raise UsageError(f"{path}: episode {episode} has {count} rows, its entry in meta says {length}")
        return pa.concat_tables(parts) if parts else pa.table({name: [] for name in wanted})

    def _opened(self, path: Path) -> tuple[Path, Any, list[Any]]:
        if self._file is None or self._file[0] != path:
            file = opened(path)
            if "episode_index" not in file.schema_arrow.names:
                raise UsageError(f"{path} has no column 'episode_index'")
            groups = [self._read(path, file, n, ["episode_index"]) for n in range(file.num_row_groups)]
            self._file = path, file, [group["episode_index"] for group in groups]
        return self._file

    def _read(self, path: Path, file: Any, number: int, columns: Sequence[str]) -> Any:
        key = (path, number, tuple(columns))
        if self._group[0] != key:
            try:
                self._group = key, file.read_row_group(number, columns=list(columns))
            except Exception as error:
                raise unreadable(path, error) from None
        return self._group[1]


def vectors(table: Any, name: str, layout: Layout, where: str, *, finite: bool = True) -> Floats:
    """[N, D] of a numeric column; scalars are vectors of one.

    Raises:
        UsageError: rows of another size than the feature's, no numbers, or (with ``finite``) NaN, infinity or a number
            beyond LARGEST; ``where`` names the episode.
    """
    shape = layout.shape(name)
    try:
        values = np.array(table[name].to_pylist(), np.float32).reshape(len(table), -1)
    except (ValueError, TypeError):
        raise UsageError(f"{where}: feature {name!r} has rows of different sizes; expected {list(shape)}") from None
    size = int(np.prod(shape, dtype=np.int64))
    if len(table) and values.shape[1] != size:
        raise UsageError(f"{where}: feature {name!r} has {values.shape[1]} numbers a row; expected {list(shape)}")
    broken = ~(np.abs(values) <= LARGEST).all(1)  # NaN is broken too
    if finite and broken.any():
        row = int(broken.argmax())
        number = values[row][~(np.abs(values[row]) <= LARGEST)][0]
        raise UsageError(f"{where}, row {row}: {name!r} holds {number:g}; mend it, or remove the episode")
    return values.reshape(len(table), size)


def picture(encoded: bytes, where: str, size: int | None = None) -> Frames:
    """[H, W, 3], or [size, size, 3], of an encoded picture.

    Raises:
        UsageError: it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            found = np.array(image.convert("RGB"), np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{where}: the picture cannot be decoded ({type(error).__name__})") from None
    return found if size is None else squared(found, size)


def pictures(column: Any, layout: Layout, where: str, size: int | None = None) -> Frames:
    """[N, H, W, 3] of pictures within rows: structs of encoded bytes and a path, one of which may be missing."""
    frames: list[Frames] = []
    for row, entry in enumerate(column.to_pylist()):
        frames.append(picture(_encoded(entry or {}, layout, f"{where}, row {row}"), f"{where}, row {row}", size))
        if frames[-1].shape != frames[0].shape:
            shapes = f"{list(frames[-1].shape)} and {list(frames[0].shape)}"
            raise UsageError(f"{where}, row {row}: pictures of different sizes, {shapes}")
    return np.stack(frames)


def _encoded(entry: dict[str, Any], layout: Layout, where: str) -> bytes:
    if entry.get("bytes") is not None:
        return bytes(entry["bytes"])
    if not entry.get("path"):
        raise UsageError(f"{where}: the picture is missing, it has neither bytes nor a path")
    place = layout.inside(str(entry["path"]))
    if place is None:
        raise UsageError(f"{where}: the picture's path {entry['path']} leads out of the dataset")
    if not place.is_file():
        raise UsageError(f"{where}: picture {entry['path']} is missing")
    return place.read_bytes()


def film(layout: Layout, episode: int, camera: str, times: Sequence[float], size: int | None = None) -> Frames:
    """[N, H, W, 3], the pictures of an episode from its video, or from its part of a longer one.

    Args:
        times: seconds of the episode's rows, from its begin.

    Raises:
        UsageError: no video, or one that cannot be decoded or has too few pictures.
    """
    try:
        import av
    except ImportError:
        raise UsageError(
            f"{layout.folder}: camera {camera!r} is a video, which needs PyAV: pip install 'autotelic[lerobot-data]'"
        ) from None
    path, start = layout.video_of(episode, camera)
    if not path.exists():
        raise UsageError(f"{path} is missing: the dataset is incomplete, fetch it again")
    wanted = start + np.asarray(times, np.float64)
    frames: list[Frames] = []
    half = 0.5 / layout.fps
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            container.seek(int(max(0.0, wanted[0] - half) * av.time_base))  # to a key frame before it
            for frame in container.decode(stream):
                # Pictures that are a row's, or that several rows share, are those nearest to its time.
                while len(frames) < len(wanted) and abs(frame.time - wanted[len(frames)]) < half:
                    found = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
                    frames.append(found if size is None else squared(found, size))
                if len(frames) == len(wanted):
                    return np.stack(frames)
    except Exception as error:
        raise unreadable(path, error) from None
    raise UsageError(f"{path}: episode {episode} has {len(wanted)} rows, and pictures for the first {len(frames)} only")
