"""Films of robots before and after learning: an ornament, so nothing that goes wrong with it ends a run."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from ..errors import UsageError, raised
from ..trainers.runs.media import CAPTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..envs.pool import Episode, Pool
    from ..envs.simulator import View
    from ..trainers.runs.run_folder import RunFolder
    from ..types import Task
    from .actor import RobotActor
    from .chunk_policy import ChunkPolicy

logger = logging.getLogger(__name__)

MISSING = "missing.txt"
"""Beside the films: the one line that says why there are none."""


def try_picture(pool: Pool, environments: Sequence[str], view: View) -> None:
    """Draw one picture of each environment, and warn now where that fails: films are drawn at a run's end."""
    from ..envs.pool import EpisodeRequest

    for name in environments:
        try:
            pool.run([EpisodeRequest(name, 0, 0)], lambda rows, observations: observations, render=view)
        except Exception as error:
            logger.warning("there will be no videos of %s: %s", name, _line(error))


def film(folder: RunFolder, actor: RobotActor, tasks: Sequence[Task], before: ChunkPolicy, view: View) -> None:
    """Side-by-side videos of the same states before and after, captioned by success, or a line saying why not.

    Args:
        actor: acts as it does after learning.
        before: the policy as it was.
    """
    target = folder.samples / "videos"
    try:
        target.mkdir(parents=True, exist_ok=True)
        _film(target, actor, tasks, before, view)
    except Exception as error:  # whatever it is: simulators, drivers, codecs and disks have errors of their own
        logger.warning("no videos: %s", _line(error))
        try:
            (target / MISSING).write_text(f"{_line(error)}\n")
        except OSError:
            logger.warning("%s cannot be written", target / MISSING)
    else:
        (target / MISSING).unlink(missing_ok=True)


def _film(target: Path, actor: RobotActor, tasks: Sequence[Task], before: ChunkPolicy, view: View) -> None:
    from ..envs.video import write_side_by_side

    sides: list[list[Episode]] = []
    captions: dict[str, str] = {}
    learned = actor.policy
    for policy in (before, learned):
        actor.policy = policy
        rollouts = actor.act(tasks, 1, mode="evaluate", greedy=True, oracle=True, render=view)
        sides.append([rollout.output for rollout in rollouts])
    for task, *episodes in zip(tasks, *sides, strict=True):
        films = [episode.frames for episode in episodes]  # of the first camera
        if films[0] is None or films[1] is None:
            raise UsageError(f"{task.id} was not drawn")
        ends = ["success" if episode.success else "no success" for episode in episodes]
        name = f"{task.category}-{task.seed}".replace("/", "-")
        labels = f"before: {ends[0]}", f"after: {ends[1]}"
        write_side_by_side(target / f"{name}.webp", films[0], films[1], labels)
        captions[name] = f"{task.category}: {task.prompt}; {', '.join(labels)}"
    (target / CAPTIONS).write_text(json.dumps(captions, indent=1) + "\n")


def _line(error: Exception) -> str:
    """An error as one line: of a text of many lines the first, and the last, where tracebacks say what it was."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return raised(error) if len(lines) < 2 else f"{type(error).__name__}: {lines[0]} {lines[-1]}"
