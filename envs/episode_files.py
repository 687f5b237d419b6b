"""Episodes as files that any numpy reads: one ``episode-NNNNNN.npz`` each.

::

    observations [S+1, D] float32, actions [S, C, A] float32
    images.CAMERA [S+1, H, W, 3] uint8 of each camera, if there are any
    environment, instruction (text), seed, steps, stopped
    success: 1, 0, or -1 where the oracle was not read

Nothing in them is pickled. For LeRobot's own layout see ``lerobot_dataset.py``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from .pool import Episode

IMAGES = "images."


def save_episodes(folder: str | Path, episodes: Sequence[Episode]) -> None:
    """Write episodes to a new or empty folder.

    Raises:
        UsageError: the folder holds something.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder: choose another")
    folder.mkdir(parents=True, exist_ok=True)
    for index, episode in enumerate(episodes):
        success = -1 if episode.success is None else int(episode.success)
        values: dict[str, Any] = {name: value for name, value in vars(episode).items() if value is not None}
        films = {IMAGES + camera: film for camera, film in (values.pop("images", None) or {}).items()}
        np.savez_compressed(folder / f"episode-{index:06d}.npz", **(values | films | {"success": success}))


def load_episodes(folder: str | Path) -> list[Episode]:
    """The episodes of a folder, in the order in which they were saved.

    Raises:
        UsageError: there are none, or a file is damaged or is no episode; the line names it.
    """
    files = sorted(Path(folder).glob("episode-*.npz"))
    if not files:
        raise UsageError(f"{folder} holds no episode-*.npz")
    return [_load(file) for file in files]


def _load(file: Path) -> Episode:
    try:
        with np.load(file, allow_pickle=False) as stored:
            success = int(stored["success"])
            cameras = [name for name in stored.files if name.startswith(IMAGES)]
            return Episode(
                environment=str(stored["environment"]),
                instruction=str(stored["instruction"]),
                seed=int(stored["seed"]),
                observations=stored["observations"],
                actions=stored["actions"],
                steps=int(stored["steps"]),
                stopped=bool(stored["stopped"]),
                success=None if success < 0 else bool(success),
                images={name.removeprefix(IMAGES): stored[name] for name in cameras} or None,
            )
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{file} is no recorded episode ({' '.join(str(error).split())})") from error
