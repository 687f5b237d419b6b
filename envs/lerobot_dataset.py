"""LeRobotDataset in and out: demonstrations and rollouts as the files that LeRobot reads and writes.

Written is layout v3.0, read are v3.0 and v2.x; other layouts and names on the hub are read by lerobot itself, where it
is installed. One row is one environment step: what was seen before it
("observation.state", "observation.images.*"), the action, and what came of it ("next.success", "next.reward", ...).
The layout was checked against the code of lerobot 0.4.4, which also read what is written here.

A LeRobotDataset holds no observation after an episode's last action. What is written here keeps it, with seed,
environment and other things that LeRobot does not ask for, in ``meta/autotelic.parquet``; LeRobot ignores that file.
In an episode without it the last action has no visible consequence, and is left out when the episode is read.

Needs pyarrow, and PyAV for videos: ``pip install 'autotelic[lerobot-data]'``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from .action_scale import ActionScale
from .demonstrations import Demonstration, stacked
from .lerobot_layout import (
    SIDECAR,
    Floats,
    Frames,
    Layout,
    UnknownLayout,
    feature_of,
    read_table,
)
from .lerobot_layout import Recording as Recording
from .lerobot_layout import layout_of_dataset as layout_of_dataset
from .lerobot_own import OwnRows, is_on_the_hub
from .lerobot_rows import Rows, film, picture, pictures, vectors
from .lerobot_writing import write_folder
from .pool import Episode
from .simulator import Simulator, make_simulator

logger = logging.getLogger(__name__)


def dataset_at(folder: str | Path) -> tuple[Layout, Rows | OwnRows]:
    """A dataset and the reader of its rows: LeRobot's own for names on the hub and for layouts not known here.

    Raises:
        UsageError: it is none, it is incomplete, or lerobot is not installed where only that can read it.
    """
    if is_on_the_hub(str(folder)):
        rows = OwnRows(str(folder))
        return rows.layout(), rows
    try:
        layout = layout_of_dataset(folder)
    except UnknownLayout as error:
        rows = OwnRows(str(folder))
        try:
            return rows.layout(), rows
        except UsageError as theirs:
            raise UsageError(f"{error} ({theirs})") from None
    return layout, Rows(layout)


def read_demonstrations(
    folder: str | Path,
    *,
    environment: str = "",
    episodes: Sequence[int] | None = None,
    state: str | Sequence[str] = "observation.state",
    action: str = "action",
    cameras: Sequence[str] = (),
    scale: ActionScale | None = None,
    failures: bool = False,
    count: int | None = None,
    size: int | None = None,
) -> list[Recording]:
    """The episodes of a LeRobotDataset as demonstrations.

    Args:
        environment: name of the simulator they belong to, for episodes that do not say.
        episodes: which; None reads all.
        state: feature or features that make up an observation, in this order.
        cameras: whose pictures are read, "wrist" for the feature "observation.images.wrist"; a feature of another
            name is written out.
        scale: from the robot's units to [-1, 1], see :func:`action_scale`.
        failures: keep episodes that are known to have failed.
        count: the first so many that are kept; no row and no picture behind them is read.
        size: pixels that each side of a picture is resized to; None leaves pictures as they are.

    Returns:
        One recording per episode: N actions and N + 1 observations. The instruction is that of the first row; an
        episode that does not name a seed gets its own index. An episode of one row shows no action with its
        consequence, and is left out with a warning.

    Raises:
        UsageError: a feature, file or package that is missing, sizes that disagree, numbers that are not finite (with
            episode and row), actions outside [-1, 1], or no episode of more than one row.
    """
    layout, rows = dataset_at(folder)
    names = [state] if isinstance(state, str) else list(state)
    for name in (*names, action):
        layout.shape(name)
    films = {camera: camera if camera in layout.features else feature_of(camera) for camera in cameras}
    for feature in films.values():
        layout.feature(feature, pictures=True)
    wanted = sorted(layout.rows) if episodes is None else list(episodes)
    absent = [index for index in wanted if index not in layout.rows]
    if absent:
        raise UsageError(f"{layout.folder} has {len(layout.rows)} episodes, and no episode {absent[0]}")
    _check_room(layout, wanted[:count], list(films.values()), size)
    reader = _Reader(layout, rows, names, action, films, scale, environment, size)
    found = list(islice(reader.all(wanted, failures), count))
    if reader.short and len(reader.short) == len(wanted):
        raise UsageError(f"{layout.folder}: every episode has one row, which shows no action with its consequence")
    return found


def action_scale(
    folder: str | Path, *, action: str = "action", tails: float = 0.01, scaled: Sequence[bool] | None = None
) -> ActionScale:
    """The map of a dataset's own actions to [-1, 1]; see :meth:`ActionScale.of`.

    Args:
        tails: share of the actions that may lie beyond each bound; 0.01 makes OpenVLA's bounds (q01, q99), 0 the range.
        scaled: [A]; dimensions that are not scaled must be in [-1, 1] already.

    Raises:
        UsageError: as ``read_demonstrations``.
    """
    layout, rows = dataset_at(folder)
    where = f"{layout.folder}, episode"
    layout.shape(action)
    values = [vectors(rows.of(i, [action]), action, layout, f"{where} {i}") for i in sorted(layout.rows)]
    if not sum(map(len, values)):
        raise UsageError(f"{layout.folder} holds no rows")
    return ActionScale.of(np.concatenate(values), tails, scaled)


def write_episodes(
    folder: str | Path,
    episodes: Sequence[Demonstration | Episode],
    *,
    fps: int,
    instruction: str | None = None,
    robot: str | None = None,
    draw: Callable[[Simulator], Mapping[str, Frames]] | None = None,
) -> Path:
    """Write demonstrations, recordings or a pool's episodes as a new LeRobotDataset (v3.0).

    Pictures become features "observation.images.CAMERA", stored as PNG within the rows, without loss.

    A pool's episode holds observations at the ends of chunks only; with chunks of more than one step it is replayed
    from its seed, see :func:`record`. Its success, if it was read, stands at its last step.

    Args:
        folder: made here; must not exist, or be empty.
        fps: rows per second of the robot's own time.
        instruction: of all episodes; None takes each one's own.
        robot: LeRobot's ``robot_type``.
        draw: takes the pictures of episodes that are replayed.

    Returns:
        The folder.

    Raises:
        UsageError: a folder that holds something, episodes of different sizes, or columns that only some have.
    """
    simulators: dict[str, Simulator] = {}
    try:
        rows = [
            episode if isinstance(episode, Demonstration) else _recorded(episode, simulators, draw)
            for episode in episodes
        ]
    finally:
        for simulator in simulators.values():
            simulator.close()
    return write_folder(Path(folder), rows, fps=fps, instruction=instruction, robot=robot)


def record(
    episode: Episode, simulator: Simulator, draw: Callable[[Simulator], Mapping[str, Frames]] | None = None
) -> Recording:
    """A pool's episode step by step, by doing it again from its seed.

    Args:
        draw: takes pictures of the simulator, camera -> [H, W, 3] uint8, after each step and before the first.

    Raises:
        UsageError: the simulator did not come by the observations that the episode remembers.
    """
    actions = episode.actions.reshape(-1, episode.actions.shape[-1])[: episode.steps]
    chunk = episode.actions.shape[1]
    simulator.reset(episode.seed)
    observations, frames = [simulator.observe()], [] if draw is None else [draw(simulator)]
    for action in actions:
        simulator.step(action[None])
        observations.append(simulator.observe())
        if draw is not None:
            frames.append(draw(simulator))
    ends = [min(place * chunk, episode.steps) for place in range(len(episode.observations))]
    for end, remembered in zip(ends, episode.observations, strict=True):
        if not np.array_equal(observations[end], remembered):
            raise UsageError(
                f"{episode.environment}, seed {episode.seed}: done again it differs at step {end}, by up to "
                f"{np.abs(observations[end] - remembered).max():.1e}; write it from observations at every step"
            )
    return Recording(
        episode.environment,
        episode.instruction,
        episode.seed,
        np.stack(observations),
        np.asarray(actions, np.float32),
        0,
        stacked(frames) if frames else None,
        episode.success,
    )


def _recorded(
    episode: Episode, simulators: dict[str, Simulator], draw: Callable[[Simulator], Mapping[str, Frames]] | None
) -> Recording:
    name = episode.environment
    if episode.actions.shape[1] == 1:
        steps = (episode.observations, episode.actions[:, 0], 0, episode.images)
        return Recording(name, episode.instruction, episode.seed, *steps, episode.success)
    if name not in simulators:
        simulators[name] = make_simulator(name)
    return record(episode, simulators[name], draw)


# reading

ROOM = 8_000_000_000
"""Bytes of pictures that are read at once."""


def _check_room(layout: Layout, episodes: Sequence[int], films: Sequence[str], size: int | None) -> None:
    """Refuse pictures that would fill the memory, before the first is decoded."""
    rows = sum(int(layout.entry(index, "length")) for index in episodes) if films else 0
    sides = [layout.shape(name, pictures=True) for name in films]
    total = rows * sum(3 * size * size if size else math.prod(shape) for shape in sides)
    if total > ROOM:
        raise UsageError(
            f"{layout.folder}: {rows} rows of pictures would take {total / 1e9:.0f} GB; read fewer episodes, or give a "
            "size"
        )


TOLD = ("next.success", "next.reward", "next.progress")


class _Reader:
    """What is read of each episode, and how."""

    def __init__(
        self,
        layout: Layout,
        rows: Rows | OwnRows,
        states: Sequence[str],
        action: str,
        films: Mapping[str, str],
        scale: ActionScale | None,
        environment: str,
        size: int | None,
    ) -> None:
        self.layout, self.states, self.action, self.films = layout, list(states), action, films
        self.scale, self.environment, self.size = scale, environment, size
        self.rows = rows
        self.told = [name for name in TOLD if name in layout.features]
        self.more = _sidecar(layout.folder)
        self.short: list[int] = []

    def all(self, wanted: Sequence[int], failures: bool) -> Iterator[Recording]:
        """Recordings one after another; each is read when it is asked for, its pictures if it is kept."""
        for index in wanted:
            found = self.one(index)
            if found is None:
                self.short.append(index)
                logger.warning(
                    "%s: episode %d has one row, which shows no action with its consequence: it is left out",
                    self.layout.folder,
                    index,
                )
            elif failures or found.success is not False:
                yield replace(found, images=self.images(index)) if self.films else found

    def one(self, index: int) -> Recording | None:
        """An episode without pictures; None where it has no action with its consequence."""
        layout, where = self.layout, f"{self.layout.folder}, episode {index}"
        table = self.rows.of(index, [*self.states, self.action, *self.told, "task_index"])
        more = self.more.get(index, {})
        last = self._last(more)
        if len(table) < (2 if last is None else 1):
            return None
        observations = np.concatenate([vectors(table, name, layout, where) for name in self.states], 1)
        actions = _scaled(vectors(table, self.action, layout, where), self.scale, where)
        rest = {name: vectors(table, name, layout, where, finite=name == "next.success")[:, 0] for name in self.told}
        held = rest.get("next.success")
        if last is None:
            actions, rest = actions[:-1], {name: column[:-1] for name, column in rest.items()}
        else:
            observations = np.concatenate([observations, last])
        success = None if held is None else bool(held.any())
        settle = max(0, len(actions) - 1 - int(held.argmax())) if held is not None and success else 0
        return Recording(
            more.get("environment") or self.environment,
            self._instruction(table["task_index"][0].as_py(), where),
            int(more.get("seed", index)),
            observations,
            actions,
            settle,
            None,
            success,
            rest.get("next.reward"),
            rest.get("next.progress"),
        )

    def images(self, index: int) -> dict[str, Frames]:
        """Camera -> [N + 1, H, W, 3]."""
        layout, where, found = self.layout, f"{self.layout.folder}, episode {index}", {}
        more = self.more.get(index, {})
        for camera, feature in self.films.items():
            if isinstance(self.rows, OwnRows):
                found[camera] = self.rows.film(index, feature, self.size)
            elif layout.features[feature]["dtype"] == "image":
                found[camera] = pictures(self.rows.of(index, [feature])[feature], layout, where, self.size)
            else:
                times = self.rows.of(index, ["timestamp"])["timestamp"].to_pylist()
                found[camera] = film(layout, index, feature, times, self.size)
            if self._last(more) is not None:
                if more.get(feature) is None:
                    raise UsageError(f"{where}: {SIDECAR} lacks the last picture of {feature}")
                found[camera] = np.concatenate([found[camera], picture(more[feature], where, self.size)[None]])
        return found

    def _last(self, more: Mapping[str, Any]) -> Floats | None:
        """[1, D] the observation after the last action, if what is ours holds it and the state is that alone."""
        last = more.get("last_state")
        kept = last is not None and self.states == ["observation.state"]
        return np.asarray(last, np.float32)[None] if kept else None

    def _instruction(self, task: Any, where: str) -> str:
        if task not in self.layout.instructions:
            known = len(self.layout.instructions)
            raise UsageError(f"{where}: task_index {task} is none of the {known} tasks in meta")
        return self.layout.instructions[task]


def _sidecar(folder: Path) -> dict[int, dict[str, Any]]:
    path = folder / SIDECAR
    return {row["episode_index"]: row for row in read_table(path).to_pylist()} if path.exists() else {}


def _scaled(actions: Floats, scale: ActionScale | None, where: str) -> Floats:
    if scale is not None:
        if len(scale.low) != actions.shape[1]:
            raise UsageError(f"{where}: actions have {actions.shape[1]} numbers, the scale has {len(scale.low)}")
        return scale.normalised(actions)
    low, high = float(actions.min()), float(actions.max())
    if low < -1 or high > 1:
        raise UsageError(
            f"{where}: actions go from {low:.3g} to {high:.3g}, beyond [-1, 1]: say what they are scaled from, by "
            "--action-scale or scale=action_scale(folder)"
        )
    return actions
