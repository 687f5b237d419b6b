"""LeRobotDataset in and out: demonstrations and rollouts as the files that LeRobot reads and writes.

Written is layout v3.0, read are v3.0 and v2.x. One row is one environment step: what was seen before it
("observation.state", "observation.images.*"), the action, and what came of it ("next.success", "next.reward", ...).
The layout was checked against the code of lerobot 0.4.4, which also read what is written here.

A LeRobotDataset holds no observation after an episode's last action. What is written here keeps it, with seed,
environment and other things that LeRobot does not ask for, in ``meta/autotelic.parquet``; LeRobot ignores that file.
In an episode without it the last action has no visible consequence, and is left out when the episode is read.

Needs pyarrow, and PyAV for videos: ``pip install 'autotelic[lerobot-data]'``.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UsageError
from .action_scale import ActionScale
from .demonstrations import Demonstration, stacked
from .lerobot_layout import (
    SIDECAR,
    Floats,
    Frames,
    Layout,
    feature_of,
    parquet,
    read_table,
)
from .lerobot_layout import Recording as Recording
from .lerobot_layout import layout_of_dataset as layout_of_dataset
from .lerobot_writing import write_folder
from .pool import Episode
from .simulator import Simulator, make_simulator


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

    Returns:
        One recording per episode: N actions and N + 1 observations. The instruction is that of the first row; an
        episode that does not name a seed gets its own index.

    Raises:
        UsageError: a feature, file or package that is missing, sizes that disagree, or actions outside [-1, 1].
    """
    layout = layout_of_dataset(folder)
    names = [state] if isinstance(state, str) else list(state)
    for name in (*names, action):
        layout.feature(name)
    films = {camera: feature_of(camera) for camera in cameras}
    for feature in films.values():
        layout.feature(feature, pictures=True)
    wanted = sorted(layout.rows) if episodes is None else list(episodes)
    absent = [index for index in wanted if index not in layout.rows]
    if absent:
        raise UsageError(f"{layout.folder} has {len(layout.rows)} episodes, and no episode {absent[0]}")
    more = _sidecar(layout.folder)
    told = [name for name in ("next.success", "next.reward", "next.progress") if name in layout.features]
    stored = [feature for feature in films.values() if layout.features[feature]["dtype"] == "image"]
    columns = [*names, action, *told, "task_index", "timestamp", *stored]
    found = []
    for index, table in _tables(layout, wanted, columns):
        images = {
            camera: _pictures(table[name], layout, index) if name in stored else _video(layout, index, name, table)
            for camera, name in films.items()
        }
        recording = _recording(layout, index, table, names, action, scale, images, more.get(index, {}), environment)
        if failures or recording.success is not False:
            found.append(recording)
    return found


def action_scale(
    folder: str | Path, *, action: str = "action", tails: float = 0.01, scaled: Sequence[bool] | None = None
) -> ActionScale:
    """The map of a dataset's own actions to [-1, 1].

    Args:
        tails: share of the actions that may lie beyond each bound; 0.01 makes OpenVLA's bounds (q01, q99), 0 the range.
        scaled: [A]; dimensions that are not scaled must be in [-1, 1] already.
    """
    layout = layout_of_dataset(folder)
    layout.feature(action)
    tables = _tables(layout, sorted(layout.rows), [action])
    values = np.concatenate([_vectors(table, action, layout) for _, table in tables])
    low, high = np.quantile(values, [tails, 1 - tails], axis=0)
    return ActionScale.between(low, high, scaled)


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


def _sidecar(folder: Path) -> dict[int, dict[str, Any]]:
    path = folder / SIDECAR
    return {row["episode_index"]: row for row in read_table(path).to_pylist()} if path.exists() else {}


def _tables(layout: Layout, wanted: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """(episode, its rows) one after another; a file that holds many episodes is read once in a row."""
    parquet()
    import pyarrow.compute as compute

    opened: tuple[Path, Any] | None = None
    for index in wanted:
        row = layout.rows[index]
        told = {"episode_index": index, "episode_chunk": index // layout.files_per_chunk}
        if layout.version.startswith("v3"):
            told = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        path = layout.folder / layout.data_path.format(**told)
        if opened is None or opened[0] != path:
            opened = path, read_table(path, ["episode_index", *columns])
        table = opened[1]
        table = table.filter(compute.equal(table["episode_index"], index))
        if len(table) != row["length"]:
            raise UsageError(f"{path}: episode {index} has {len(table)} rows, its entry in meta says {row['length']}")
        yield index, table


def _vectors(table: Any, name: str, layout: Layout) -> Floats:
    """[N, D] of a numeric column; scalars are vectors of one."""
    column = table[name].combine_chunks()
    shape = list(layout.features[name]["shape"])
    try:
        values = np.array(column.to_pylist(), np.float32).reshape(len(table), -1)
    except (ValueError, TypeError):
        raise UsageError(f"{layout.folder}: feature {name!r} has rows of different sizes; expected {shape}") from None
    if values.shape[1] != int(np.prod(shape)):
        raise UsageError(f"{layout.folder}: feature {name!r} has {values.shape[1]} numbers a row; expected {shape}")
    return values


def _recording(
    layout: Layout,
    index: int,
    table: Any,
    states: Sequence[str],
    action: str,
    scale: ActionScale | None,
    images: dict[str, Frames],
    more: Mapping[str, Any],
    environment: str,
) -> Recording:
    where = f"{layout.folder}, episode {index}"
    observations = np.concatenate([_vectors(table, name, layout) for name in states], 1)
    actions = _scaled(_vectors(table, action, layout), scale, where)
    told = {
        name: _vectors(table, name, layout)[:, 0] if name in table.column_names else None
        for name in ("next.success", "next.reward", "next.progress")
    }
    held = told["next.success"]
    success = None if held is None else bool(held.any())
    last = more.get("last_state")
    if last is not None and states == ["observation.state"]:
        observations = np.concatenate([observations, np.asarray(last, np.float32)[None]])
        for camera, film in images.items():
            if more.get(feature_of(camera)) is None:
                raise UsageError(f"{where}: {SIDECAR} lacks the last picture of {feature_of(camera)}")
            images[camera] = np.concatenate([film, _picture(more[feature_of(camera)])[None]])
    else:
        actions = actions[:-1]
        told = {name: None if column is None else column[: len(actions)] for name, column in told.items()}
    settle = max(0, len(actions) - 1 - int(held.argmax())) if held is not None and success else 0
    return Recording(
        more.get("environment") or environment,
        layout.instructions[int(table["task_index"][0].as_py())],
        int(more.get("seed", index)),
        observations,
        actions,
        settle,
        images or None,
        success,
        told["next.reward"],
        told["next.progress"],
    )


def _scaled(actions: Floats, scale: ActionScale | None, where: str) -> Floats:
    if scale is not None:
        if len(scale.low) != actions.shape[1]:
            raise UsageError(f"{where}: actions have {actions.shape[1]} numbers, the scale has {len(scale.low)}")
        return scale.normalised(actions)
    low, high = float(actions.min()), float(actions.max())
    if low < -1 or high > 1:
        raise UsageError(
            f"{where}: actions go from {low:.3g} to {high:.3g}, beyond [-1, 1]; give scale=action_scale(folder)"
        )
    return actions


def _picture(encoded: bytes) -> Frames:
    with Image.open(io.BytesIO(encoded)) as picture:
        return np.array(picture.convert("RGB"), np.uint8)


def _pictures(column: Any, layout: Layout, index: int) -> Frames:
    """Pictures within rows: structs of encoded bytes and a path, one of which may be missing."""
    frames = []
    for entry in column.to_pylist():
        if entry["bytes"] is None and not (layout.folder / str(entry["path"])).exists():
            raise UsageError(f"{layout.folder}, episode {index}: picture {entry['path']} is missing")
        frames.append(_picture(entry["bytes"] or (layout.folder / str(entry["path"])).read_bytes()))
    return np.stack(frames)


def _video(layout: Layout, index: int, camera: str, table: Any) -> Frames:
    """The pictures of an episode from its video, or from its part of a longer one."""
    try:
        import av
    except ImportError:
        raise UsageError(
            f"{layout.folder}: camera {camera!r} is a video, which needs PyAV: pip install 'autotelic[lerobot-data]'"
        ) from None
    row, start = layout.rows[index], 0.0
    told: dict[str, Any] = {"episode_index": index, "episode_chunk": index // layout.files_per_chunk}
    if layout.version.startswith("v3"):
        start = float(row[f"videos/{camera}/from_timestamp"])
        told = {name: row[f"videos/{camera}/{name}"] for name in ("chunk_index", "file_index")}
    path = layout.folder / str(layout.video_path).format(video_key=camera, **told)
    if not path.exists():
        raise UsageError(f"{path} is missing: the dataset is incomplete, fetch it again")
    times = start + np.asarray(table["timestamp"], np.float64)
    frames: list[Frames] = []
    half = 0.5 / layout.fps
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        container.seek(int(max(0.0, times[0] - half) * av.time_base))  # to a key frame before it
        for frame in container.decode(stream):
            # Pictures that are a row's, or that several rows share, are those nearest to its time.
            while len(frames) < len(times) and abs(frame.time - times[len(frames)]) < half:
                frames.append(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))
            if len(frames) == len(times):
                return np.stack(frames)
    raise UsageError(f"{path}: episode {index} has {len(times)} rows, and pictures for the first {len(frames)} only")
