"""LeRobotDataset in and out. The layouts of datasets from outside are written here by hand."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autotelic.envs.action_scale import ActionScale
from autotelic.envs.demonstrations import Demonstration
from autotelic.envs.lerobot_dataset import (
    Recording,
    action_scale,
    layout_of_dataset,
    read_demonstrations,
    record,
    write_episodes,
)
from autotelic.envs.pool import EpisodeRequest
from autotelic.envs.simulator import make_simulator
from autotelic.errors import UsageError

from . import point_mass

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
CAMERA = "observation.images.main"


def recording(steps: int, seed: int, instruction: str = "open it", success: bool = True, **changes: Any) -> Recording:
    random = np.random.default_rng(seed)
    return Recording(
        **{
            "environment": "metaworld/reach-v3",
            "instruction": instruction,
            "seed": seed,
            "observations": random.normal(size=(steps + 1, 5)).astype(np.float32),
            "actions": random.uniform(-1, 1, (steps, 3)).astype(np.float32),
            "settle": 2 if success else 0,
            "images": {"main": random.integers(0, 256, (steps + 1, 12, 16, 3), dtype=np.uint8)},
            "success": success,
            "rewards": random.normal(size=steps).astype(np.float32),
            "progress": random.uniform(size=steps).astype(np.float32),
        }
        | changes
    )


def plain(steps: int = 4, seed: int = 0, **changes: Any) -> Demonstration:
    made = recording(steps, seed)
    kept = ("environment", "instruction", "seed", "observations", "actions", "settle")
    return Demonstration(**{name: getattr(made, name) for name in kept} | changes)


def same(one: Recording, other: Recording) -> None:
    for name, value in vars(one).items():
        if name != "images":
            np.testing.assert_array_equal(value, getattr(other, name), name)
    assert (one.images or {}).keys() == (other.images or {}).keys()
    for camera, film in (one.images or {}).items():
        np.testing.assert_array_equal(film, (other.images or {})[camera])


def test_what_is_written_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    episodes = [recording(7, 3), recording(9, 1_000_004, "close it"), recording(5, 5, success=False)]
    write_episodes(tmp_path / "data", episodes, fps=20)
    back = read_demonstrations(tmp_path / "data", cameras=["main"], failures=True)
    for one, other in zip(episodes, back, strict=True):
        same(one, other)
    assert [r.seed for r in read_demonstrations(tmp_path / "data")] == [3, 1_000_004]  # without the failure
    (alone,) = read_demonstrations(tmp_path / "data", episodes=[1])
    assert alone.instruction == "close it" and alone.frames is None
    assert not list(tmp_path.glob(".*"))


def test_the_files_say_what_lerobot_looks_for(tmp_path: Path) -> None:
    folder = write_episodes(tmp_path / "data", [recording(7, 3), recording(9, 4, "close it")], fps=20)
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"], info["total_frames"]) == ("v3.0", 20, 2, 16)
    assert info["features"][CAMERA] == {
        "dtype": "image",
        "shape": [12, 16, 3],
        "names": ["height", "width", "channels"],
    }
    rows = pq.read_table(folder / "data/chunk-000/file-000.parquet").to_pydict()
    assert list(rows) == list(info["features"])
    assert rows["index"] == list(range(16)) and rows["episode_index"] == [0] * 7 + [1] * 9
    assert rows["task_index"] == [0] * 7 + [1] * 9
    np.testing.assert_allclose(rows["timestamp"][:3], [0, 0.05, 0.1])
    assert rows["next.success"][:7] == [False] * 4 + [True] * 3  # first held two steps before the end
    assert rows["next.done"] == [False] * 6 + [True] + [False] * 8 + [True]
    tasks = pq.read_table(folder / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]
    entry = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()[1]
    assert (entry["length"], entry["dataset_from_index"], entry["dataset_to_index"]) == (9, 7, 16)
    assert entry["tasks"] == ["close it"] and (entry["data/chunk_index"], entry["data/file_index"]) == (0, 0)


def test_statistics_by_hand(tmp_path: Path) -> None:
    actions = np.array([[-1.0, 0.0, 1.0], [0.0, 0.5, 1.0], [1.0, 1.0, 1.0]], np.float32)
    frames = np.zeros((4, 2, 2, 3), np.uint8)
    frames[..., 1] = 255
    folder = write_episodes(tmp_path / "data", [recording(3, 0, actions=actions, images={"main": frames})], fps=10)
    found = json.loads((folder / "meta/stats.json").read_text())
    np.testing.assert_allclose(found["action"]["mean"], [0, 0.5, 1])
    np.testing.assert_allclose(found["action"]["std"], [np.sqrt(2 / 3), np.sqrt(1 / 6), 0], atol=1e-7)
    np.testing.assert_allclose(found["action"]["q90"], [0.8, 0.9, 1])
    assert found["action"]["count"] == [3]
    assert found[CAMERA]["mean"] == [[[0.0]], [[1.0]], [[0.0]]]


def test_demonstrations_of_an_expert_are_successes(tmp_path: Path) -> None:
    folder = write_episodes(tmp_path / "data", [plain(4), plain(5, 1)], fps=80, instruction="go")
    back = read_demonstrations(folder)
    assert [(r.success, r.settle, r.instruction, r.rewards) for r in back] == [(True, 2, "go", None)] * 2
    assert layout_of_dataset(folder).cameras == []


def test_large_data_goes_into_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotelic.envs.lerobot_writing.MEGABYTES", 0)
    monkeypatch.setattr("autotelic.envs.lerobot_writing.FILES_PER_CHUNK", 2)
    episodes = [recording(4, seed) for seed in range(3)]
    folder = write_episodes(tmp_path / "data", episodes, fps=20)
    files = sorted(str(path.relative_to(folder)) for path in folder.glob("data/*/*"))
    assert files == [f"data/chunk-{chunk:03d}/file-{file:03d}.parquet" for chunk, file in ((0, 0), (0, 1), (1, 0))]
    for one, other in zip(episodes, read_demonstrations(folder, cameras=["main"]), strict=True):
        same(one, other)


def test_without_the_last_observation_the_last_action_is_left_out(tmp_path: Path) -> None:
    folder = write_episodes(tmp_path / "data", [recording(6, 3, settle=0)], fps=20)
    (folder / "meta/autotelic.parquet").unlink()  # as LeRobot would have written it
    (back,) = read_demonstrations(folder, environment="metaworld/push-v3", cameras=["main"])
    made = recording(6, 3)
    np.testing.assert_array_equal(back.observations, made.observations[:6])
    np.testing.assert_array_equal(back.actions, made.actions[:5])
    assert back.frames is not None and made.frames is not None and made.rewards is not None
    np.testing.assert_array_equal(back.frames, made.frames[:6])
    np.testing.assert_array_equal(back.rewards, made.rewards[:5])
    # Success held after the very action that is left out; it is a success all the same.
    assert (back.environment, back.seed, back.success, back.settle) == ("metaworld/push-v3", 0, True, 0)


def test_episodes_of_a_pool_are_done_again_step_by_step(tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def act(rows: NDArray[np.int64], observations: NDArray[np.float32]) -> NDArray[Any]:
        return random.uniform(-1, 1, (len(rows), 4, 2))

    with point_mass.simulators() as pool:
        episodes = pool.run([EpisodeRequest(point_mass.NAME, seed, 6) for seed in (0, 1)], act)
    folder = write_episodes(
        tmp_path / "data", episodes, fps=10, draw=lambda _: {"main": np.full((2, 3, 3), 7, np.uint8)}
    )
    back = read_demonstrations(folder, cameras=["main"])
    for episode, rows in zip(episodes, back, strict=True):
        assert rows.actions.shape == (6, 2) and rows.frames is not None and rows.frames.shape == (7, 2, 3, 3)
        np.testing.assert_array_equal(rows.observations[[0, 4, 6]], episode.observations)
        assert rows.success is None and rows.instruction == point_mass.INSTRUCTION
    episodes[0].observations[1] += 1e-3
    with pytest.raises(UsageError, match=r"done again it differs at step 4, by up to 1\.0e-03"):
        record(episodes[0], make_simulator(point_mass.NAME))


def test_scales_by_hand() -> None:
    scale = ActionScale.between([0, -10, -1], [4, 10, 1], [True, True, False])
    np.testing.assert_allclose(scale.normalised([[1, 5, 0.3], [9, -20, -1]]), [[-0.5, 0.5, 0.3], [1, -1, -1]])
    np.testing.assert_allclose(scale.original([[-0.5, 0.5, 0.3]]), [[1, 5, 0.3]])
    with pytest.raises(UsageError, match="dimension 1 goes from 3 to 2; bounds are finite, the lower one first"):
        ActionScale.between([0, 3], [1, 2])
    with pytest.raises(UsageError, match="low has 2 numbers, high 3"):
        ActionScale.between([0, 3], [1, 3, 4])


# layouts from outside


def video(path: Path, shades: list[int], fps: int = 10) -> None:
    """Pictures of one shade each, with a key frame every fourth."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 32, 32, "yuv420p", 4
        for shade in shades:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def outside(folder: Path, version: str, lengths: tuple[int, ...] = (6, 5)) -> list[list[int]]:
    """A dataset with actions in degrees and one camera, as LeRobot lays it out; returns the shades of its pictures."""
    features = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": None},
        "observation.environment_state": {"dtype": "float32", "shape": [1], "names": None},
        "action": {"dtype": "float32", "shape": [2], "names": None},
        "observation.images.top": {"dtype": "video", "shape": [32, 32, 3], "names": ["height", "width", "channels"]},
    }
    chunk, v3 = "chunk-{episode_chunk:03d}", version == "v3.0"
    data = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    pictures = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    info = {
        "codebase_version": version,
        "fps": 10,
        "chunks_size": 1000,
        "features": features,
        "data_path": data if v3 else f"data/{chunk}/episode_{{episode_index:06d}}.parquet",
        "video_path": pictures if v3 else f"videos/{chunk}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
    }
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info))
    shades, tables, entries, before = [], [], [], 0
    for index, length in enumerate(lengths):
        shades.append([20 * place + 60 * index for place in range(length)])
        columns = {
            "observation.state": [[float(index), float(place)] for place in range(length)],
            "observation.environment_state": [0.5 * place for place in range(length)],
            "action": [[90.0 * place, -10.0 + place] for place in range(length)],
            "timestamp": [place / 10 for place in range(length)],
            "episode_index": [index] * length,
            "task_index": [index % 2] * length,
        }
        tables.append(pa.table(columns))
        entry: dict[str, Any] = {"episode_index": index, "length": length, "tasks": ["push"]}
        entry |= {"data/chunk_index": 0, "data/file_index": 0}
        camera = "videos/observation.images.top"
        entry |= {f"{camera}/chunk_index": 0, f"{camera}/file_index": 0, f"{camera}/from_timestamp": before / 10}
        entries.append(entry)
        before += length
    (folder / "data/chunk-000").mkdir(parents=True)
    if v3:
        pq.write_table(pa.concat_tables(tables), folder / data.format(chunk_index=0, file_index=0))
        pq.write_table(pa.Table.from_pylist(entries), folder / "meta/episodes/chunk-000/file-000.parquet")
        tasks = pa.table({"task": ["push", "pull"], "task_index": [0, 1]})
        pq.write_table(tasks, folder / "meta/tasks.parquet")
        path = pictures.format(video_key="observation.images.top", chunk_index=0, file_index=0)
        video(folder / path, [shade for row in shades for shade in row])
        return shades
    for index, table in enumerate(tables):
        pq.write_table(table, folder / f"data/chunk-000/episode_{index:06d}.parquet")
        video(folder / f"videos/chunk-000/observation.images.top/episode_{index:06d}.mp4", shades[index])
    kept = [{name: entry[name] for name in ("episode_index", "length", "tasks")} for entry in entries]
    (folder / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, kept)))
    (folder / "meta/tasks.jsonl").write_text(
        "\n".join(json.dumps({"task_index": i, "task": t}) for i, t in enumerate(("push", "pull")))
    )
    return shades


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_datasets_from_outside(tmp_path: Path, version: str) -> None:
    shades = outside(tmp_path, version)
    with pytest.raises(UsageError, match=r"actions go from -10 to 450, beyond \[-1, 1\]: say .* --action-scale"):
        read_demonstrations(tmp_path)
    scale = action_scale(tmp_path, tails=0)
    np.testing.assert_allclose([scale.low, scale.high], [[0, -10], [450, -5]])
    both = ["observation.environment_state", "observation.state"]
    back = read_demonstrations(tmp_path, scale=scale, cameras=["top"], state=both)
    assert [r.instruction for r in back] == ["push", "pull"] and [r.success for r in back] == [None, None]
    np.testing.assert_allclose(back[1].observations, [[0.5 * i, 1, i] for i in range(5)])
    np.testing.assert_allclose(back[0].actions, [[0.4 * i - 1] * 2 for i in range(5)], atol=1e-6)
    for row, found in zip(shades, back, strict=True):
        assert found.frames is not None and found.frames.shape == (len(row), 32, 32, 3)
        np.testing.assert_allclose(found.frames.mean((1, 2, 3)), row, atol=4)  # a video loses a little


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside(tmp_path / "v3", "v3.0")
    scale = action_scale(tmp_path / "v3")
    with pytest.raises(UsageError, match="is not a LeRobotDataset: it has no meta"):
        read_demonstrations(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r'unknown feature "observation\.stat": did you mean observation'):
        read_demonstrations(tmp_path / "v3", state="observation.stat")
    with pytest.raises(
        UsageError, match=r'unknown camera "observation\.images\.tip": did you mean observation\.images\.top'
    ):
        read_demonstrations(tmp_path / "v3", cameras=["tip"], scale=scale)
    with pytest.raises(UsageError, match="has 2 episodes, and no episode 2"):
        read_demonstrations(tmp_path / "v3", episodes=[2])
    with pytest.raises(UsageError, match="actions have 2 numbers, the scale has 1"):
        read_demonstrations(tmp_path / "v3", scale=ActionScale.between([0], [1]))
    wanted, imported = {"av"}, builtins.__import__

    def importing(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] in wanted:
            raise ImportError(name)
        return imported(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(UsageError, match=r"is a video, which needs PyAV: pip install 'autotelic\[lerobot-data\]'"):
        read_demonstrations(tmp_path / "v3", cameras=["top"], scale=scale)
    wanted.add("pyarrow")
    with pytest.raises(UsageError, match=r"needs pyarrow: pip install 'autotelic\[lerobot-data\]'"):
        read_demonstrations(tmp_path / "v3")


def test_damage_is_told_in_one_line(tmp_path: Path) -> None:
    outside(tmp_path, "v2.1")
    lines = (tmp_path / "meta/episodes.jsonl").read_text()
    (tmp_path / "meta/episodes.jsonl").write_text(lines.replace('"length": 6', '"length": 7'))
    scale = ActionScale.between([0, -10], [450, 0])
    with pytest.raises(UsageError, match="episode 0 has 6 rows, its entry in meta says 7"):
        read_demonstrations(tmp_path, scale=scale)
    (tmp_path / "data/chunk-000/episode_000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"episode_000001.parquet cannot be read: .+") as caught:
        read_demonstrations(tmp_path, episodes=[1], scale=scale)
    assert "\n" not in str(caught.value)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    (tmp_path / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v1.6"}))
    with pytest.raises(UsageError, match=r"has layout v1.6: v2.x and v3.x are read"):
        layout_of_dataset(tmp_path)
    del info["fps"]
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(UsageError, match="lacks fps"):
        layout_of_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"observations": np.zeros((4, 5), np.float32)}, "episode 1: 4 observations for 4 actions"),
        ({"observations": np.zeros((5, 6), np.float32)}, r"episode 1: states and actions of shape \(6,\) and \(3,\)"),
        ({"actions": np.full((4, 3), np.nan, np.float32)}, "episode 1: states or actions hold NaN"),
        ({"actions": np.zeros((0, 3), np.float32)}, "episode 1 has no steps"),
        ({"rewards": None}, "episodes 0 and 1: only one of them has next.reward"),
        ({"success": None}, "episodes 0 and 1: only one of them has next.success"),
        ({"progress": np.zeros(3, np.float32)}, "3 next.progress for 4 actions; expected 4"),
        ({"images": {"main": np.zeros((4, 12, 16, 3), np.uint8)}}, f"4 {CAMERA} for 4 actions; expected 5"),
        (
            {"images": {"main": np.zeros((5, 12, 16, 3), np.float32)}},
            r"images.main is float32 \[5, 12, 16, 3\]; expected uint8",
        ),
        (
            {"images": {"main": np.zeros((5, 9, 9, 3), np.uint8)}},
            r"images.main is uint8 \[5, 9, 9, 3\]; expected uint8",
        ),
    ],
)
def test_episodes_that_cannot_be_written(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        write_episodes(tmp_path / "data", [recording(4, 0), recording(4, 1, **change)], fps=20)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something already"):
        write_episodes(tmp_path, [plain()], fps=20)
    with pytest.raises(UsageError, match="fps is 0"):
        write_episodes(tmp_path / "new", [plain()], fps=0)
    with pytest.raises(UsageError, match="no episodes to write"):
        write_episodes(tmp_path / "new", [], fps=20)
    with pytest.raises(UsageError, match="LeRobot looks for names such as"):
        write_episodes(tmp_path / "new", [plain(images={"a/b": np.zeros((5, 2, 2, 3), np.uint8)})], fps=20)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
