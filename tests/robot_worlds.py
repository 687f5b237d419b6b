"""Point masses with faults, and LeRobotDatasets with faults, for cases of strange input."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from autotelic.envs.demonstrations import Demonstration
from autotelic.envs.lerobot_dataset import write_episodes
from autotelic.envs.simulator import EnvSpec, Outcome, register

from .point_mass import INSTRUCTION, PointMass, arrived, distance, straight

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


class Ends(PointMass):
    """Says that it is over where it arrives."""

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        seen, *_ = super().step(action)
        return seen, 0.0, distance(seen) < 0.2, False, {}


class Breaks(PointMass):
    """Observes NaN from its third step on, where its seed is odd."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[Any], dict[str, Any]]:
        self.steps, self.odd = 0, bool((seed or 0) % 2)
        return super().reset(seed=seed, options=options)

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        seen, *rest = super().step(action)
        return (np.full_like(seen, np.nan) if self.odd and self.steps >= 3 else seen), *rest  # type: ignore[return-value]


class Wide(PointMass):
    """Three numbers more in an observation."""

    observation_space = gymnasium.spaces.Box(-10, 10, (7,), np.float32)

    def seen(self) -> NDArray[Any]:
        return np.concatenate([super().seen(), np.zeros(3, np.float32)])


def never(outcome: Outcome) -> bool:
    return False


def anywhere(outcome: Outcome) -> bool:
    return distance(outcome.observation) < 2


def half_of_them(outcome: Outcome) -> bool:
    return bool(outcome.observation[2] > 0) or arrived(outcome)


def told_by_info(outcome: Outcome) -> bool:
    return bool(outcome.info["is_success"])


def misspelt(env: Any, observation: NDArray[np.float32]) -> NDArray[np.float32]:
    return direction * 2  # type: ignore[name-defined,no-any-return]  # noqa: F821


for _name, _class in {"Ends": Ends, "Breaks": Breaks, "Wide": Wide, "Plain": PointMass}.items():
    if f"strange/{_name}-v0" not in gymnasium.registry:
        gymnasium.register(f"strange/{_name}-v0", f"{_class.__module__}:{_class.__name__}")

PLACES = {"hand": slice(0, 2), "goal": slice(2, 4)}
WORLDS: dict[str, Callable[[], EnvSpec]] = {
    "plain": lambda: EnvSpec("tests.robot_worlds:strange/Plain-v0", INSTRUCTION, 8, arrived, expert=straight),
    "placed": lambda: EnvSpec(
        "tests.robot_worlds:strange/Plain-v0", INSTRUCTION, 8, arrived, expert=straight, layout=PLACES
    ),
    "ends": lambda: EnvSpec("tests.robot_worlds:strange/Ends-v0", INSTRUCTION, 8, arrived, expert=straight),
    "breaks": lambda: EnvSpec("tests.robot_worlds:strange/Breaks-v0", INSTRUCTION, 8, arrived, expert=straight),
    "wide": lambda: EnvSpec("tests.robot_worlds:strange/Wide-v0", "go there", 8, never, expert=straight),
    "easy": lambda: EnvSpec("tests.robot_worlds:strange/Plain-v0", INSTRUCTION, 8, anywhere, expert=straight),
    "half": lambda: EnvSpec("tests.robot_worlds:strange/Plain-v0", INSTRUCTION, 8, half_of_them, expert=straight),
    "info": lambda: EnvSpec("tests.robot_worlds:strange/Plain-v0", INSTRUCTION, 8, told_by_info, expert=straight),
    "misspelt": lambda: EnvSpec("tests.robot_worlds:strange/Plain-v0", INSTRUCTION, 8, arrived, expert=misspelt),
    "uneven": lambda: EnvSpec(
        "tests.robot_worlds:strange/Plain-v0",
        INSTRUCTION,
        8,
        arrived,
        layout={"hand": slice(0, 2), "goal": slice(2, 3)},
    ),
}


def world(name: str) -> str:
    """The registered name of a world."""
    register(f"strange/{name}", WORLDS[name]())
    return f"strange/{name}"


def shown(steps: int = 6, state: int = 4, action: int = 2, seed: int = 0, side: int = 0) -> Demonstration:
    """Random numbers as a demonstration that succeeded at its last step."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (steps + 1, side, side, 3), dtype=np.uint8)
    return Demonstration(
        "strange/plain",
        INSTRUCTION,
        seed,
        random.normal(size=(steps + 1, state)).astype(np.float32),
        random.uniform(-1, 1, (steps, action)).astype(np.float32),
        0,
        {"main": images} if side else None,
    )


def dataset(folder: Path, lengths: Sequence[int] = (6, 6), **sizes: int) -> Path:
    """A LeRobotDataset (v3.0) as LeRobot writes it, without what is ours."""
    target = folder / f"data{len(list(folder.iterdir()))}"
    write_episodes(target, [shown(steps, seed=seed, **sizes) for seed, steps in enumerate(lengths)], fps=20)
    (target / "meta/autotelic.parquet").unlink()
    return target


def altered(folder: Path, column: str, change: Callable[[list[Any]], list[Any]], file: str = DATA) -> Path:
    """The dataset with a column of one of its tables changed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(folder / file)
    values = change(table[column].to_pylist())
    kind = table.schema.field(column).type
    try:
        array = pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        array = pa.array(values)  # rows of another size
    pq.write_table(table.set_column(table.schema.names.index(column), column, array), folder / file)
    return folder


def put(row: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    """A change of one row."""
    return lambda values: [*values[:row], value, *values[row + 1 :]]


def without(folder: Path, column: str, file: str = DATA) -> Path:
    """The dataset without a column."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / file)
    pq.write_table(table.drop_columns([column]), folder / file)
    return folder


def told(folder: Path, **changes: Any) -> Path:
    """The dataset with entries of meta/info.json changed; None takes one away."""
    path = folder / "meta/info.json"
    info = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in info.items() if value is not None}))
    return folder


def older(folder: Path, tasks: str = '{"task_index": 0, "task": "go"}\n', episodes: str = "") -> Path:
    """A dataset of layout v2.1, one episode of six rows, with the text of its two JSON-lines files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = folder / "older"
    (target / "meta").mkdir(parents=True)
    (target / "data/chunk-000").mkdir(parents=True)
    features = {
        "observation.state": {"dtype": "float32", "shape": [4]},
        "action": {"dtype": "float32", "shape": [2]},
        **{name: {"dtype": "int64", "shape": [1]} for name in ("episode_index", "task_index")},
        "timestamp": {"dtype": "float32", "shape": [1]},
    }
    info = {"codebase_version": "v2.1", "fps": 20, "features": features, "chunks_size": 1000, "video_path": None}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    (target / "meta/info.json").write_text(json.dumps(info))
    (target / "meta/tasks.jsonl").write_text(tasks, encoding="utf-8")
    line = json.dumps({"episode_index": 0, "tasks": ["go"], "length": 6}) + "\n"
    (target / "meta/episodes.jsonl").write_text(episodes or line, encoding="utf-8")
    made = shown()
    columns = {
        "observation.state": made.observations[:6].tolist(),
        "action": made.actions.tolist(),
        "episode_index": [0] * 6,
        "task_index": [0] * 6,
        "timestamp": [row / 20 for row in range(6)],
    }
    pq.write_table(pa.table(columns), target / "data/chunk-000/episode_000000.parquet")
    return target
