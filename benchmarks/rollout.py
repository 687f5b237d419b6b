"""Rollouts against the physics limit and against Gymnasium's vectors, on states and on pixels, in CPU seconds.

    python benchmarks/rollout.py [--quick] [--json FILE]

How to read it. Every rate is environment steps per CPU second of all processes involved, because wall time on a
shared machine says more about the neighbours; a repeat measures all rivals in turn, so that they see the same load,
and a ratio is formed within its repeat. A figure is the mean over tasks, then over repeats; its interval is 95 %
(Student) over repeats.

- state_limit_fraction: whole runs of ``Pool`` with a small MLP policy (chunks of 5, 150 steps, groups of 8 from one
  initial state as in training; resets, observations, success checks and the policy included) over ``mj_step`` alone
  on the very same actions. 1 would mean that everything but physics is free.
- state_ratio: the same runs over the better of Gymnasium's SyncVectorEnv and AsyncVectorEnv (8 of MetaWorld's own
  environments, the same network asked every 5 steps, resets included). ``state_ratio_without_groups``: no two of our
  episodes share a reset.
- pixel_ratio: runs with 64-pixel pictures of quality "fast" at chunk ends and a small conv policy, over MetaWorld's
  own environment whose ``render()`` (Gymnasium's default renderer) is called after every step at 64 pixels;
  ``theirs_480`` in the rows is the same at MetaWorld's default of 480 pixels. Same camera, same network.
- pixel_equal_quality_ratio: ours with quality "full", which is the default renderer's own, so that only looking
  rarely counts (pictures are drawn before each chunk, once for both episodes of a common start).
- missed_successes: of noisy expert episodes that succeed at some step, the share that no chunk end shows.
- memory: megabytes of a worker per environment, without and with pictures, and kilobytes of a saved episode; beside it
  microseconds of restoring an episode and of a reset, the best of three.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import time
import timeit
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "osmesa")

import torch._dynamo  # first: Python crashes when it comes after mujoco has loaded OSMesa

# isort: split
import gymnasium
import mujoco
import numpy as np
import torch
from common import parser_of, save
from metaworld.env_dict import ENV_CLS_MAP
from torch import Tensor, nn

from autotelic.envs.metaworld import MetaWorldSimulator
from autotelic.envs.pool import EpisodeRequest, Pool
from autotelic.envs.simulator import View
from autotelic.statistics import mean_interval

TASKS = (
    "reach-v3",
    "push-v3",
    "drawer-open-v3",
    "door-open-v3",
    "window-open-v3",
    "button-press-topdown-v3",
)
PIXEL_TASKS = ("drawer-open-v3", "push-v3", "door-open-v3")
CHUNK, HORIZON, GROUP, VECTOR, SIZE, CAMERA = 5, 150, 8, 8, 64, "corner2"


class Policy:
    """The same small network for everyone: chunks [n, 5, 4] from states [n, 21] or frames [n, 64, 64, 3]."""

    def __init__(self, pixels: bool) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        if pixels:
            convolutions = [
                part
                for width, before in ((16, 3), (32, 16), (32, 32), (32, 32))
                for part in (nn.Conv2d(before, width, 3, 2, 1), nn.ReLU())
            ]
            self.net = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 16, 4 * CHUNK))
        else:
            layers = (nn.Linear(21, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4 * CHUNK))
            self.net = nn.Sequential(*layers)

    @torch.inference_mode()
    def __call__(self, seen: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(seen)
        given = given.permute(0, 3, 1, 2).float() / 255 if given.ndim == 4 else given.float()
        chunk: Tensor = self.net(given).tanh().unflatten(1, (CHUNK, 4))
        return chunk.numpy()


class Clock:
    """CPU seconds of this process and of others by their ids, since it was made."""

    def __init__(self, others: tuple[int, ...] = ()) -> None:
        self.others, self.start = others, 0.0
        self.start = self()

    def __call__(self) -> float:
        return time.process_time() + sum(map(_cpu_of, self.others)) - self.start


def _cpu_of(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def own(task: str, **arguments: Any) -> gymnasium.Env:
    """MetaWorld's own environment, seeded, with a visible goal and a time limit."""
    env: Any = ENV_CLS_MAP[task](**arguments)
    env.seeded_rand_vec, env._freeze_rand_vec = True, False
    env._partially_observable, env._set_task_called = False, True
    del env.sawyer_observation_space
    env.observation_space = env.sawyer_observation_space
    env.seed(int(time.time_ns() % 2**31))
    return gymnasium.wrappers.TimeLimit(env, HORIZON)


class Maker:
    """Makes ``own(task)`` in the vectors' processes."""

    def __init__(self, task: str) -> None:
        self.task = task

    def __call__(self) -> gymnasium.Env:
        return own(self.task)


def vector_rate(envs: Any, policy: Policy, episodes: int) -> float:
    """Steps per CPU second of a Gymnasium vector with success latched, resets included."""
    clock = Clock(tuple(process.pid for process in getattr(envs, "processes", ())))
    latched = np.zeros(VECTOR, bool)
    for _ in range(episodes):
        observations, _ = envs.reset()
        for step in range(HORIZON):
            if step % CHUNK == 0:
                lean = np.concatenate((observations[:, :18], observations[:, 36:]), 1).astype(np.float32)
                actions = policy(lean)
            observations, _, _, _, info = envs.step(actions[:, step % CHUNK])
            latched |= np.asarray(info.get("success", latched)) > 0
    return episodes * HORIZON * VECTOR / clock()


def state_repeat(pool: Pool, simulator: MetaWorldSimulator, vectors: dict[str, Any], seed: int, groups: int) -> dict:
    """Rates of one repeat on one task."""
    (name,), policy = pool.environments, Policy(pixels=False)

    def ours(requests: list[EpisodeRequest]) -> tuple[list[Any], float]:
        clock = Clock()
        never = np.zeros(len(requests), bool)
        episodes = pool.run(
            requests, lambda rows, seen: policy(seen), oracle=True, stop=lambda rows, seen: never[: len(rows)]
        )
        return episodes, sum(episode.steps for episode in episodes) / clock()

    grouped = [EpisodeRequest(name, seed + group, HORIZON) for group in range(groups) for _ in range(GROUP)]
    episodes, rate = ours(grouped)
    rates = {"ours": rate}
    rates["ours_without_groups"] = ours([EpisodeRequest(name, seed + 100 + n, HORIZON) for n in range(2 * GROUP)])[1]
    rates["limit"] = limit(simulator, [episodes[group * GROUP] for group in range(groups)] * 4)
    return rates | {kind: vector_rate(envs, policy, 1) for kind, envs in vectors.items()}


def limit(simulator: MetaWorldSimulator, episodes: list[Any]) -> float:
    """Steps per CPU second of ``mj_step`` alone on these episodes' actions; resets and restores are not counted."""
    spent, model, data = 0.0, simulator.model, simulator.data
    low, high = simulator.env.mocap_low.tolist(), simulator.env.mocap_high.tolist()
    for episode in episodes:
        simulator.reset(episode.seed)
        started = time.process_time()
        position, control = data.mocap_pos[0], data.ctrl
        for *moves, force in episode.actions.reshape(-1, 4).tolist():
            position[:] = [
                min(max(x + 0.01 * move, a), b)
                for x, move, a, b in zip(position.tolist(), moves, low, high, strict=True)
            ]
            control[:] = force, -force
            mujoco.mj_step(model, data, 5)
        spent += time.process_time() - started
    return sum(episode.steps for episode in episodes) / spent


def states(tasks: Sequence[str], repeats: int, groups: int) -> dict[str, list[dict[str, float]]]:
    """Rates by task and repeat."""
    rows = {}
    for task in tasks:
        vectors = {
            "sync": gymnasium.vector.SyncVectorEnv([Maker(task)] * VECTOR),
            "async": gymnasium.vector.AsyncVectorEnv([Maker(task)] * VECTOR),
        }
        simulator = MetaWorldSimulator(task)
        with Pool([f"metaworld/{task}"], chunk=CHUNK, workers=0) as pool:
            state_repeat(pool, simulator, vectors, 10_000, 1)  # warms caches up
            rows[task] = [state_repeat(pool, simulator, vectors, 1000 * repeat, groups) for repeat in range(repeats)]
        for envs in vectors.values():
            envs.close()
        _tell(task, rows[task])
    return rows


def their_pixels(task: str, size: int, steps: int) -> float:
    """Steps per CPU second of MetaWorld's own environment with a render after each."""
    env = own(task, render_mode="rgb_array", camera_name=CAMERA, width=size, height=size)
    policy = Policy(pixels=True)
    env.reset()
    picture = env.render()
    clock = Clock()
    env.reset()
    for step in range(steps):
        if step % CHUNK == 0:
            actions = policy(np.ascontiguousarray(picture[:: size // SIZE, :: size // SIZE][None, :SIZE, :SIZE]))[0]
        env.step(actions[step % CHUNK])
        picture = env.render()
    return steps / clock()


def our_pixels(pool: Pool, view: View, seed: int, groups: int, members: int) -> float:
    """Steps per CPU second of whole runs with pictures at chunk ends."""
    policy, name = Policy(pixels=True), pool.environments[0]
    requests = [EpisodeRequest(name, seed + group, HORIZON) for group in range(groups) for _ in range(members)]
    before, acting = pool.cpu_seconds, 0.0

    def act(rows: np.ndarray, states: np.ndarray, frames: dict[str, np.ndarray]) -> np.ndarray:
        nonlocal acting
        started = time.process_time()
        actions = policy(frames[CAMERA])
        acting += time.process_time() - started
        return actions

    episodes = pool.run(requests, act, oracle=True, render=view, see=True, keep=False)
    return sum(episode.steps for episode in episodes) / (pool.cpu_seconds - before + acting)


def pixels(tasks: Sequence[str], repeats: int, groups: int) -> dict[str, list[dict[str, float]]]:
    """Rates by task and repeat; the rivals draw in a process of their own."""
    rows = {}
    spawn = multiprocessing.get_context("spawn")
    for task in tasks:
        with Pool([f"metaworld/{task}"], chunk=CHUNK, workers=1) as pool, spawn.Pool(1) as other:
            for quality in ("fast", "full"):  # contexts are made once per run
                our_pixels(pool, View(SIZE, quality, (CAMERA,)), 9999, 1, 1)
            rows[task] = [
                {
                    "ours_fast": our_pixels(pool, View(SIZE, "fast", (CAMERA,)), 1000 * repeat, groups, GROUP),
                    "theirs_64": other.apply(their_pixels, (task, SIZE, 40)),
                    "ours_full": our_pixels(pool, View(SIZE, "full", (CAMERA,)), 1000 * repeat, 1, 2),
                    "theirs_480": other.apply(their_pixels, (task, 480, 20)),
                }
                for repeat in range(repeats)
            ]
        _tell(task, rows[task])
    return rows


def missed(tasks: Sequence[str], episodes: int) -> dict[str, Any]:
    """Successes that hold at some step but at no chunk's end, under experts with noise of 0.5 held for a chunk."""
    rows = {}
    for task in tasks:
        simulator, found, lost = MetaWorldSimulator(task), 0, 0
        for seed in range(500, 500 + episodes):
            simulator.reset(seed)
            expert, random = simulator.expert(), np.random.default_rng(seed)
            anywhere = at_ends = False
            for _ in range(HORIZON // CHUNK):
                chunk_noise = 0.5 * random.standard_normal(4)
                for _ in range(CHUNK):
                    simulator.step(np.clip(expert() + chunk_noise, -1, 1).astype(np.float32)[None])
                    anywhere |= (now := simulator.success())
                at_ends |= now
            found, lost = found + anywhere, lost + (anywhere and not at_ends)
        rows[task] = {"episodes": episodes, "succeeded": found, "missed": lost}
    succeeded = sum(row["succeeded"] for row in rows.values())
    return {"rate": sum(row["missed"] for row in rows.values()) / max(succeeded, 1), "tasks": rows}


def memory() -> dict[str, float]:
    """Of a fresh process: what one environment adds."""

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    MetaWorldSimulator("hammer-v3").reset(0)
    before = resident()
    simulators = [MetaWorldSimulator(task) for task in TASKS]
    for simulator in simulators:
        simulator.reset(0)
    built = resident()
    saved = []
    tracemalloc.start()
    for _ in range(2000):
        simulators[0].step(np.zeros((1, 4), np.float32))
        saved.append(simulators[0].save())
    states = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    kept = resident()
    for simulator in simulators:
        simulator.frame(View(SIZE, "fast", (CAMERA,)))
    drawn = resident()
    works = {"restore": lambda: simulators[0].restore(saved[0]), "reset": lambda: simulators[0].reset(1)}
    return {
        **{f"us_per_{name}": 1e6 * min(timeit.repeat(work, number=50, repeat=3)) / 50 for name, work in works.items()},
        "mb_per_environment": (built - before) / len(TASKS),
        "mb_per_environment_for_pictures": (drawn - kept) / len(TASKS),
        "kb_per_saved_episode": states / 1024 / len(saved),
    }


def figure(rows: dict[str, list[dict[str, float]]], ratio: Callable[[dict[str, float]], float]) -> dict[str, Any]:
    """A ratio's mean over tasks and repeats, and 95 % over repeats."""
    by_repeat = [statistics.fmean(map(ratio, repeat)) for repeat in zip(*rows.values(), strict=True)]
    low, high = mean_interval(by_repeat)
    return {"value": statistics.fmean(by_repeat), "low": low, "high": high, "repeats": by_repeat}


def _tell(task: str, rows: list[dict[str, float]]) -> None:
    means = {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
    print(f"{task:24s}", "  ".join(f"{name} {value:,.0f}" for name, value in means.items()), flush=True)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "MUJOCO_GL": os.environ["MUJOCO_GL"],
    }


def main() -> None:
    options = parser_of(__doc__, "two repeats of shorter runs, on one task each").parse_args()
    repeats, groups, count = (2, 1, 1) if options.quick else (5, 4, len(TASKS))
    begun = machine()
    with multiprocessing.get_context("spawn").Pool(1) as other:
        occupied = other.apply(memory)
    on_states = states(TASKS[:count], repeats, groups)
    on_pixels = pixels(PIXEL_TASKS[:count], repeats, max(1, groups // 2))
    figures = {
        "state_limit_fraction": figure(on_states, lambda row: row["ours"] / row["limit"]),
        "state_ratio": figure(on_states, lambda row: row["ours"] / max(row["sync"], row["async"])),
        "state_ratio_without_groups": figure(
            on_states, lambda row: row["ours_without_groups"] / max(row["sync"], row["async"])
        ),
        "pixel_ratio": figure(on_pixels, lambda row: row["ours_fast"] / row["theirs_64"]),
        "pixel_equal_quality_ratio": figure(on_pixels, lambda row: row["ours_full"] / row["theirs_64"]),
    }
    for name, found in figures.items():
        print(f"{name:28s} {found['value']:.3g}  [{found['low']:.3g}, {found['high']:.3g}]")
    lost = missed(TASKS[:count], 5 if options.quick else 30)
    print(f"missed_successes {lost['rate']:.3f}", "  ".join(f"{name} {value:.1f}" for name, value in occupied.items()))
    record = {name: found["value"] for name, found in figures.items()} | {"intervals": figures}
    record |= {"states": on_states, "pixels": on_pixels, "missed_successes": lost, "memory": occupied, "machine": begun}
    save(options, json.loads(json.dumps(record), parse_float=lambda text: float(f"{float(text):.5g}")))


if __name__ == "__main__":
    main()
