"""Pictures of MuJoCo environments: the pool's worker against the environments' own renderers, in CPU seconds.

    python benchmarks/pictures.py [--quick] [--json FILE]

How to read it. Every rate is frames per CPU second, threads of the GL library included; physics moves on by one step
between two frames and is not counted, but for the rows "pool" and "own_run". A repeat measures all rivals in turn in
one process, so that they see the same load, and a ratio is formed within its repeat. A figure is the geometric mean
over environments, then the mean over repeats with its interval of 95 % (Student); ``lowest`` is the environment with
the lowest ratio. Robots of Gymnasium-Robotics are left out, and named, where it is not installed.

- own: the environment's ``render()``, made to draw at the very size, its GL context kept open.
- own_480: ``render()`` at the size that Gymnasium draws at by default, made smaller: what a picture cost before they
  were drawn here.
- fast, plain, full: ``GymSimulator.frame`` at each quality; at "full" it is ``own`` to the last bit.
- pool: whole runs of ``Pool`` with a picture after every step at "fast", resets, steps and states included, by the CPU
  seconds of its worker; own_run: the same episodes by the environment itself, ``render()`` after every step.
- ratio_64, ratio_224: fast over own; before_64, before_224: fast over own_480; run_64: pool over own_run.
- memory: megabytes of a process that draws of three environments in turns, after every tenth of its frames.
"""

from __future__ import annotations

import importlib
import json
import math
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of workers too: Gymnasium-Robotics registers its ids twice

import gymnasium
import numpy as np
from common import parser_of, save

from autotelic.envs.gym_simulator import GymSimulator
from autotelic.envs.pool import EpisodeRequest, Pool
from autotelic.envs.rendering import settle_backend
from autotelic.envs.simulator import EnvSpec, Outcome, View, register
from autotelic.envs.video import squared
from autotelic.statistics import mean_interval

KINDS = ("HalfCheetah-v5", "Reacher-v5", "Ant-v5", "FetchReach-v4", "AdroitHandDoor-v1", "FrankaKitchen-v1")
PLAIN = 3
"""How many of them Gymnasium itself has."""
SIZES = (64, 224)
FEW = ("own", "own_480", "full")
"""Rivals that draw a quarter of the frames: they take long."""


def never(outcome: Outcome) -> bool:
    """Success is nobody's business here."""
    return False


def spec_of(kind: str) -> EnvSpec:
    """One action per decision, a picture after each."""
    return EnvSpec(kind, "be seen", 100, never, chunk=1)


def know_robots() -> bool:
    """Whether Gymnasium-Robotics is there; its environments are known from now on."""
    warnings.simplefilter("ignore")
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    try:
        gymnasium.register_envs(importlib.import_module("gymnasium_robotics"))
    except ImportError:
        return False
    return True


def own(kind: str, **size: int) -> Any:
    """The environment as Gymnasium makes it to be drawn, which has drawn once."""
    env = gymnasium.make(kind, render_mode="rgb_array", disable_env_checker=True, max_episode_steps=-1, **size)
    env.reset(seed=0)
    env.render()
    return env


def current(env: Any) -> None:
    """Draw in this environment's GL context: its viewer takes for granted that there is no other."""
    inner = env.unwrapped
    holder = inner if "mujoco_renderer" in vars(inner) else inner.robot_env
    holder.mujoco_renderer.viewer.make_context_current()


def rate(step: Callable[[], Any], draw: Callable[[], Any], frames: int) -> float:
    """Frames per CPU second, steps not counted."""
    spent = 0.0
    for _ in range(frames):
        step()
        started = time.process_time()
        draw()
        spent += time.process_time() - started
    return frames / spent


def measured(kind: str, size: int, repeats: int, frames: int) -> list[dict[str, float]]:
    """Rates of every rival by repeat, of one environment; in a process of its own."""
    know_robots()
    settle_backend()
    simulator = GymSimulator(spec_of(kind))
    same, large = own(kind, width=size, height=size), own(kind)
    actions = np.random.default_rng(0).uniform(-1, 1, (frames, simulator.action_size)).astype(np.float32)
    rows = []
    for repeat in range(repeats):
        row = {}
        for name in ("own", "own_480", "fast", "plain", "full"):
            turns = iter(actions)
            count = frames // 4 if name in FEW else frames
            if name.startswith("own"):
                env = same if name == "own" else large
                env.reset(seed=repeat)
                current(env)
                shrink = name == "own_480"
                row[name] = rate(
                    lambda env=env, turns=turns: env.step(simulator.decode(next(turns))),
                    lambda env=env, shrink=shrink: squared(env.render(), size) if shrink else env.render(),
                    count,
                )
            else:
                view = View(size, name)
                simulator.reset(repeat)
                simulator.frame(view)
                row[name] = rate(
                    lambda turns=turns: simulator.step(next(turns)[None]),
                    lambda view=view: simulator.frame(view),
                    count,
                )
        current(same)
        started = time.process_time()
        same.reset(seed=repeat)
        same.render()
        for action in actions[: frames // 4]:
            same.step(simulator.decode(action))
            same.render()
        row["own_run"] = (frames // 4 + 1) / (time.process_time() - started)
        rows.append(row)
    return rows


def pooled(kind: str, size: int, repeats: int, frames: int) -> list[float]:
    """Frames per CPU second of a pool's worker in whole runs, two episodes of a seed."""
    know_robots()
    name = f"pictures/{kind}"
    register(name, spec_of(kind))
    rates = []
    with Pool([name], workers=1, chunk=1) as pool:
        action_size = pool.sizes(name)[1]
        random = np.random.default_rng(0)

        def act(rows: Any, observations: Any, pictures: Any) -> Any:
            return random.uniform(-1, 1, (len(rows), 1, action_size))

        for repeat in range(-1, repeats):  # the first opens the GL context
            requests = [EpisodeRequest(name, 1000 + repeat, max(2, frames // 4))] * 2
            before = pool.cpu_seconds
            episodes = pool.run(requests, act, render=View(size), see=True)
            rates.append(sum(len(episode.frames) for episode in episodes) / (pool.cpu_seconds - before))
    return rates[1:]


def memory(kinds: Sequence[str], frames: int) -> list[float]:
    """Megabytes of this process after every tenth of the frames, of some environments in turns."""
    know_robots()
    simulators = [GymSimulator(spec_of(kind)) for kind in kinds]
    for simulator in simulators:
        simulator.reset(0)
    found = []
    for frame in range(frames):
        simulator = simulators[frame % len(simulators)]
        simulator.step(np.zeros((1, simulator.action_size), np.float32))
        simulator.frame(View(64))
        if (frame + 1) % (frames // 10) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found.append(round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1))
    return found


def figure(rows: Mapping[str, list[dict[str, float]]], above: str, below: str) -> dict[str, Any]:
    """A ratio's mean over environments and repeats, its interval over repeats, and the lowest environment."""
    ratios = {kind: [row[above] / row[below] for row in repeats] for kind, repeats in rows.items()}
    by_repeat = [math.exp(statistics.fmean(map(math.log, each))) for each in zip(*ratios.values(), strict=True)]
    means = {kind: statistics.fmean(each) for kind, each in ratios.items()}
    lowest = min(means, key=means.__getitem__)
    low, high = mean_interval(by_repeat)
    return {"value": statistics.fmean(by_repeat), "low": low, "high": high, "lowest": {lowest: means[lowest]}} | {
        "environments": means
    }


def main() -> None:
    options = parser_of(__doc__, "two environments, two repeats of fewer frames").parse_args()
    robots = know_robots()
    kinds = KINDS if robots else KINDS[:PLAIN]
    repeats, frames, drawn = (2, 24, 300) if options.quick else (5, 48, 2000)
    kinds = kinds[:2] if options.quick else kinds
    left_out = [] if robots else list(KINDS[PLAIN:])
    rows: dict[int, dict[str, list[dict[str, float]]]] = {size: {} for size in SIZES}
    spawn = multiprocessing.get_context("spawn")
    for kind in kinds:
        for size in SIZES:
            with spawn.Pool(1) as other:
                found = other.apply(measured, (kind, size, repeats, frames))
            for row, whole in zip(found, pooled(kind, size, repeats, frames), strict=True):
                row["pool"] = whole
            rows[size][kind] = found
            means = {name: statistics.fmean(row[name] for row in found) for name in found[0]}
            print(
                f"{kind:20s} {size:3d}", "  ".join(f"{name} {value:,.0f}" for name, value in means.items()), flush=True
            )
    with spawn.Pool(1) as other:
        occupied = other.apply(memory, (kinds[:3], drawn))
    figures = {f"ratio_{size}": figure(rows[size], "fast", "own") for size in SIZES}
    figures |= {f"before_{size}": figure(rows[size], "fast", "own_480") for size in SIZES}
    figures |= {f"run_{size}": figure(rows[size], "pool", "own_run") for size in SIZES}
    for name, found in figures.items():
        print(f"{name:12s} {found['value']:.3g}  [{found['low']:.3g}, {found['high']:.3g}]  lowest {found['lowest']}")
    print("memory", occupied, "left out", left_out)
    record = {name: found["value"] for name, found in figures.items()} | {"intervals": figures}
    record |= {"frames": {str(size): rows[size] for size in SIZES}, "memory_mb": occupied, "left_out": left_out}
    save(options, json.loads(json.dumps(record), parse_float=lambda text: float(f"{float(text):.4g}")))


if __name__ == "__main__":
    main()
