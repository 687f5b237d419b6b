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


@dataclass(frozen=True)
class Wanted:
    """Which episodes; pixels along a side of their pictures, 0 for none; steps per second, 0 for the spec's."""

    chosen: Chosen
    frames: int = 0
    shown: bool = False
    fps: int = 0


def record_run(run: Path, target: Path, rebuild: Rebuild, wanted: Wanted) -> int:
    """Write episodes of a run's best policy, or its demonstrations, to a new folder; returns how many.

    Raises:
        UsageError: no run of a robot recipe, a folder that holds something, pictures of demonstrations that have
            none, or a robot whose steps per second are not known.
    """
    from .envs.lerobot_dataset import write_episodes

    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is not empty: name a new folder")
    episodes: Sequence[Any]
    if wanted.shown:
        episodes = [d for several in demonstrations_of(run).values() for d in several]
        if wanted.frames and episodes[0].frames is None:
            raise UsageError(f"the demonstrations of {run} have no pictures: run the recipe with --obs-type pixels")
        write_episodes(target, episodes, fps=_fps(wanted, episodes))
    else:
        episodes = episodes_of(run, rebuild, wanted.chosen)
        draw = _painter(wanted.frames) if wanted.frames else None
        write_episodes(target, episodes, fps=_fps(wanted, episodes), draw=draw)
    return len(episodes)


def _fps(wanted: Wanted, episodes: Sequence[Any]) -> int:
    from .envs.simulator import registered, spec_of

    if wanted.fps:
        return wanted.fps
    names = dict.fromkeys(episode.environment for episode in episodes)
    known = {name: spec_of(name).fps if name in registered() else 0 for name in names}
    silent = next((name for name, fps in known.items() if not fps), None)
    if silent is not None:
        raise UsageError(f"steps per second of {silent} are not known: say --fps, or give its EnvSpec fps")
    if len(set(known.values())) > 1:
        raise UsageError(f"environments of different steps per second ({known}): say --fps")
    return next(iter(known.values()))


def _painter(size: int) -> Callable[[Simulator], Any]:
    from .envs.simulator import View

    view = View(size)
    return lambda simulator: simulator.frames(view)
