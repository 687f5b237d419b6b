"""``autotelic record``: what a run's policy does, or what it was shown, as a LeRobotDataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .auditing import Chosen, Rebuild, demonstrations_of, episodes_of
from .errors import UsageError

if TYPE_CHECKING:
    from .envs.simulator import Simulator

METAWORLD_FPS = 80
"""MetaWorld's steps per second: 5 substeps of 2.5 ms."""


@dataclass(frozen=True)
class Wanted:
    """Which episodes, and whether with pictures: pixels along a side, 0 for none."""

    chosen: Chosen
    frames: int = 0
    shown: bool = False
    fps: int = METAWORLD_FPS


def record_run(run: Path, target: Path, rebuild: Rebuild, wanted: Wanted) -> int:
    """Write episodes of a run's best policy, or its demonstrations, to a new folder; returns how many.

    Raises:
        UsageError: no run of a robot recipe, a folder that holds something, or pictures of demonstrations that have
            none.
    """
    from .envs.lerobot_dataset import write_episodes

    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is not empty: name a new folder")
    episodes: Sequence[Any]
    if wanted.shown:
        episodes = [d for several in demonstrations_of(run).values() for d in several]
        if wanted.frames and episodes[0].frames is None:
            raise UsageError(f"the demonstrations of {run} have no pictures: run the recipe with --sees frames")
        write_episodes(target, episodes, fps=wanted.fps)
    else:
        episodes = episodes_of(run, rebuild, wanted.chosen)
        write_episodes(target, episodes, fps=wanted.fps, draw=_painter(wanted.frames) if wanted.frames else None)
    return len(episodes)


def _painter(size: int) -> Callable[[Simulator], Any]:
    import torch.optim  # noqa: F401  # a later import of it, after OSMesa has drawn, can crash the process

    from .envs.simulator import View

    view = View(size)
    return lambda simulator: simulator.frame(view)
