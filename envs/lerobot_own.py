"""LeRobot's own reader, where lerobot is installed: of datasets on the hub, and of layouts that are not known here.

What it reads passes the same checks as what is read here. Written against the signatures of lerobot 0.4's
``LeRobotDataset`` and ``LeRobotDatasetMetadata``; tests run it on a stand-in, since lerobot asks for Python 3.12.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from .lerobot_layout import Frames, Layout
from .video import squared


class OwnRows:
    """Rows of episodes as LeRobot reads them; each episode is opened, and fetched, when it is asked for."""

    def __init__(self, name: str) -> None:
        self.name, self.arguments = name, _arguments(name)
        self._open: tuple[int, Any] | None = None

    def layout(self) -> Layout:
        """What the dataset says of itself."""
        module = _module(self.name)
        with _told(self.name):
            meta = module.LeRobotDatasetMetadata(**self.arguments)
            tasks = {int(row["task_index"]): str(text) for text, row in meta.tasks.to_dict("index").items()}
            rows = {int(row["episode_index"]): dict(row) for row in meta.episodes}
            version = str(meta.info["codebase_version"])
            return Layout(Path(meta.root), version, float(meta.fps), dict(meta.features), tasks, rows, "", None, 1000)

    def of(self, episode: int, columns: Sequence[str]) -> Any:
        """An episode's rows as a table; raises UsageError where a column is missing."""
        import pyarrow as pa

        rows = self._rows(episode)
        lacking = [name for name in columns if rows and name not in rows[0]]
        if lacking:
            raise UsageError(f"{self.name} has no feature {lacking[0]!r}")
        return pa.table({name: [np.asarray(row[name]).tolist() for row in rows] for name in dict.fromkeys(columns)})

    def film(self, episode: int, feature: str, size: int | None) -> Frames:
        """[N, H, W, 3] of a camera, which LeRobot gives as [3, H, W] in 0..1."""
        pictures = [np.asarray(row[feature], np.float32).transpose(1, 2, 0) for row in self._rows(episode)]
        frames = [np.rint(255 * picture.clip(0, 1)).astype(np.uint8) for picture in pictures]
        return np.stack(frames if size is None else [squared(frame, size) for frame in frames])

    def _rows(self, episode: int) -> list[dict[str, Any]]:
        if self._open is None or self._open[0] != episode:
            module = _module(self.name)
            with _told(self.name):
                dataset = module.LeRobotDataset(**self.arguments, episodes=[episode])
                self._open = episode, [dataset[place] for place in range(len(dataset))]
        rows: list[dict[str, Any]] = self._open[1]
        return rows


def is_on_the_hub(name: str) -> bool:
    """Whether a name is that of a dataset on the hub and of nothing here."""
    return not Path(name).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def _arguments(name: str) -> dict[str, Any]:
    path = Path(name)
    return {"repo_id": f"local/{path.resolve().name}", "root": path} if path.is_dir() else {"repo_id": name}


def _module(name: str) -> Any:
    try:
        from lerobot.datasets import lerobot_dataset
    except ImportError as error:
        raise UsageError(
            f"{name} is read by lerobot alone, which cannot be imported ({error}): pip install 'autotelic[lerobot]', "
            "on Python 3.12 or later; what is on the hub can be fetched before, by hf download --repo-type dataset"
        ) from None
    return lerobot_dataset


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever lerobot raises, in one line that names the dataset."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        first = "".join(str(error).strip().splitlines()[:1])
        raise UsageError(f"lerobot cannot read {name} ({type(error).__name__}: {first})") from error
