"""What simulators cost beside their own steps: Gymnasium's MuJoCo robots, envpool, the driver; and are they exact?

    python benchmarks/environments.py [--quick] [--json FILE] [--envpool benchmarks/.envpool/bin/python]

CPU seconds of all processes involved; contestants take turns, and a ratio is formed within its round. Shown are the
median, the lowest and the highest of the rounds. gymnasium-robotics' environments need the extra ``robotics``; without
it they are left out, which the record says.

- mujoco_fraction: environment steps per CPU second of whole runs of ``Pool`` (the policy excluded; resets,
  observations, success and messages included; no two episodes share a start) over plain ``env.step`` and
  ``env.reset`` of Gymnasium's own environment on the same actions, at chunks of 1 and of 5.
- restore: 3 episodes of 200 steps that take turns of five steps in one instance, beside the same in Gymnasium alone:
  equal to the last bit in observations and rewards, or refused when the environment is tried; anything else is wrong.
- state_bytes: what a saved state takes, beside the bytes of MuJoCo's data in use.
- envpool_ratio: ``Pool`` on MetaWorld over envpool's MetaWorld in C++ with the same network and chunks; shared: eight
  episodes from each start; alone: none shared.
- driver_us_per_step: CPU time of the process that holds the policy, per environment step, 256 episodes of MetaWorld,
  chunks of 5, the default policy. overlap: with a policy that waits for as long as the simulators take, wall time with
  two pipeline stages over that with one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")


# isort: split
import gymnasium
import numpy as np
from common import Worker, measured, parser_of, race, ratio, save

from autotelic.envs.env_checker import check_env
from autotelic.envs.gym_simulator import GymSimulator
from autotelic.envs.pool import EpisodeRequest, Pool
from autotelic.envs.simulator import EnvSpec, Outcome, register, spec_of

sys.path.insert(0, str(Path(__file__).parent / "peers"))

GYMNASIUM = ("Reacher-v5", "HalfCheetah-v5")
ROBOTICS = ("PointMaze_UMaze-v3", "AdroitHandDoor-v1", "FrankaKitchen-v1", "FetchPickAndPlace-v4")
EXACT = (
    *("Reacher-v5", "Pusher-v5", "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"),
    *("HumanoidStandup-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Swimmer-v5"),
)
EXACT_ROBOTICS = (
    *("PointMaze_UMaze-v3", "AntMaze_UMaze-v5", "FetchReach-v4", "FetchPush-v4", "FetchPickAndPlace-v4"),
    *("HandReach-v3", "HandManipulateBlock-v1", "AdroitHandDoor-v1", "AdroitHandHammer-v1", "FrankaKitchen-v1"),
)
TASKS = ("push-v3", "drawer-open-v3")
NAME = "benchmark/"


def never(outcome: Outcome) -> bool:
    return False


def joined(gym_id: str, chunk: int, horizon: int) -> str:
    """A Gymnasium environment by a spec."""
    name = f"{NAME}{gym_id}/{chunk}"
    register(name, EnvSpec(gym_id, "benchmark", horizon, never, chunk=chunk))
    return name


def has_robotics() -> bool:
    try:
        import gymnasium_robotics
    except ImportError:
        return False
    gymnasium.register_envs(gymnasium_robotics)
    return True


# --- Gymnasium's environments -------------------------------------------------------------------


def fraction(gym_id: str, chunk: int, episodes: int, horizon: int, rounds: int) -> dict[str, float]:
    """The pool's steps per CPU second over plain stepping's."""
    name = joined(gym_id, chunk, horizon)
    simulator = GymSimulator(spec_of(name))
    size = simulator.action_size
    scripts = np.random.default_rng(0).uniform(-1, 1, (episodes, horizon, size)).astype(np.float32)
    decoded = [[simulator.decode(action) for action in script] for script in scripts]
    env = gymnasium.make(gym_id)
    requests = [EpisodeRequest(name, seed, horizon) for seed in range(episodes)]
    chunks = scripts.reshape(episodes, horizon // chunk, chunk, size)

    def plain(_: Any) -> dict[str, float]:
        for seed, script in enumerate(decoded):
            env.reset(seed=seed)
            for action in script:
                env.step(action)
        return {}

    with Pool([name], workers=1) as pool:
        pool.build()

        def act(rows: Any, observations: Any) -> Any:
            now[rows] += 1
            return chunks[rows, now[rows] - 1]

        def pooled() -> dict[str, float]:
            now[:] = 0
            before = pool.cpu_seconds
            pool.run(requests, act, oracle=True)
            return {"cpu": pool.cpu_seconds - before}

        now = np.zeros(episodes, np.int64)
        costs = race({"plain": lambda: measured(plain, None), "pool": pooled}, rounds, warm=1)
        own = pool._described[name].mode.own
    return ratio(costs["plain"], costs["pool"]) | {"own": own}


class Played:
    """Observations and rewards of an episode."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def look(self, simulator: GymSimulator) -> None:
        self.seen.append((simulator.observe(), simulator.total_reward))

    def equals(self, other: Played) -> bool:
        pairs = zip(self.seen, other.seen, strict=True)
        return all(np.array_equal(a[0], b[0]) and a[1] == b[1] for a, b in pairs)


def restored(gym_id: str, steps: int) -> dict[str, Any]:
    """Whether three episodes that take turns go on as alone; and the size of a state."""
    name = joined(gym_id, 5, steps)
    mode = check_env(name).mode
    simulator, alone = GymSimulator(spec_of(name)), []
    scripts = np.random.default_rng(1).uniform(-1, 1, (3, steps // 5, 5, simulator.action_size)).astype(np.float32)
    for seed, script in enumerate(scripts):
        fresh, played = GymSimulator(spec_of(name)), Played()
        fresh.reset(seed)
        for chunk in script:
            fresh.step(chunk)
            played.look(fresh)
        fresh.close()
        alone.append(played)
    if not mode.restores:
        return {"refused": True, "equal": None}
    states, together = [], [Played() for _ in scripts]
    for seed in range(3):
        simulator.reset(seed)
        states.append(simulator.save())
    for index in range(steps // 5):
        for row in np.random.default_rng(index).permutation(3).tolist():
            simulator.restore(states[row])
            simulator.step(scripts[row, index])
            together[row].look(simulator)
            states[row] = simulator.save()
    equal = all(a.equals(b) for a, b in zip(alone, together, strict=True))
    inner = next(
        (part for each in simulator._chain for part in (each, *vars(each).values()) if hasattr(part, "data")), None
    )
    data = None if inner is None else inner.data
    used = int(data.nbuffer + data.maxuse_arena) if hasattr(data, "nbuffer") else None
    return {"refused": False, "equal": equal, "state_bytes": simulator.state_size(states[0]), "data_bytes": used}


# --- MetaWorld ----------------------------------------------------------------------------------


def envpool_ratio(python: Path, task: str, episodes: int, rounds: int) -> dict[str, Any]:
    """The pool's steps per CPU second over envpool's."""
    from envpool_metaworld import network, weights

    name, matrices = f"metaworld/{task}", weights()
    theirs = Worker([str(python), str(Path(__file__).parent / "peers" / "envpool_metaworld.py")])
    with Pool([name], workers=1, chunk=5) as pool:
        pool.build()
        turn = iter(range(1_000_000))

        def seconds() -> float:
            return time.process_time() + sum(worker.cpu_seconds for worker in pool._workers)

        def ours(shared: int) -> dict[str, float]:
            first = 10_000 * next(turn)
            requests = [EpisodeRequest(name, first + row // shared, 150) for row in range(episodes)]
            before = seconds()
            pool.run(requests, lambda rows, seen: network(seen, matrices))
            return {"cpu": (seconds() - before) / (150 * episodes)}

        def peer() -> dict[str, float]:
            return {"cpu": 1 / theirs.step({"task": task, "episodes": episodes, "seed": 0})["rate"]}

        costs = race({"envpool": peer, "shared": partial(ours, 8), "alone": partial(ours, 1)}, rounds, warm=1)
    theirs.close()
    rates = {who: round(1 / statistics.median(row["cpu"] for row in rows)) for who, rows in costs.items()}
    return {kind: ratio(costs["envpool"], costs[kind]) for kind in ("shared", "alone")} | {"steps_per_second": rates}


def driver(episodes: int, rounds: int) -> dict[str, Any]:
    """CPU microseconds per environment step of the process that holds the policy; and what two stages save."""
    import torch

    from autotelic.vla.actor import RobotActor
    from autotelic.vla.environments import make_task
    from autotelic.vla.policy import ActionModel, ActionPolicy

    torch.set_num_threads(1)
    name, horizon = "metaworld/drawer-open-v3", 150
    tasks = [make_task(name, seed, horizon) for seed in range(episodes // 8)]
    steps = episodes * horizon
    with Pool([name], chunk=5) as pool:
        pool.build()
        actor = RobotActor(ActionPolicy(ActionModel(21, 4, chunk=5)), pool)
        actor.act(tasks, 8)
        own = []
        for turn in range(rounds):
            started = time.process_time()
            actor.act(tasks, 8, key=(0, turn))
            own.append((time.process_time() - started) / steps * 1e6)
        requests = [EpisodeRequest(name, row // 8, horizon) for row in range(episodes)]

        def wall(stages: int, pause: float) -> float:
            """Seconds of a run whose policy waits ``pause`` seconds for each decision, as for a device."""
            pool.pipeline_stages = stages

            def act(rows: Any, observations: Any) -> Any:
                time.sleep(pause * len(rows))
                return np.zeros((len(rows), 5, 4), np.float32)

            started = time.perf_counter()
            pool.run(requests, act)
            return time.perf_counter() - started

        overlaps = []
        for _ in range(rounds):
            alone = wall(1, 0.0)
            pause = alone / (episodes * horizon // 5)
            overlaps.append(wall(2, pause) / wall(1, pause))
    middle = statistics.median
    low, high = round(min(overlaps), 3), round(max(overlaps), 3)
    return {
        "driver_us_per_step": {"median": round(middle(own), 2), "low": round(min(own), 2), "high": round(max(own), 2)},
        "overlap": {"median": round(middle(overlaps), 3), "low": low, "high": high},
    }


def main() -> None:
    parser = parser_of(__doc__, "Reacher and HalfCheetah, one round of few episodes, three environments restored")
    parser.add_argument("--envpool", type=Path, help="the Python of an environment with envpool 1.2.5")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    robotics = has_robotics()
    figures: dict[str, Any] = {"robotics": robotics}
    for part in options.parts:
        PARTS[part](options, robotics, figures)
    for name, figure in figures.items():
        print(f"{name}: {figure}")
    save(options, figures)


def fractions(options: argparse.Namespace, robotics: bool, figures: dict[str, Any]) -> None:
    names = [*GYMNASIUM, *(ROBOTICS if robotics and not options.quick else ())]
    rounds, found = (1 if options.quick else 5), {}
    for gym_id in names:
        cheap = gym_id in GYMNASIUM or "Maze" in gym_id
        for chunk in (1, 5):
            episodes = 16 if options.quick else 64 if cheap else 32
            found[f"{gym_id}, chunk {chunk}"] = fraction(gym_id, chunk, episodes, 100 if cheap else 50, rounds)
    figures["mujoco_fraction"] = found
    for chunk in (1, 5):
        several = [figure["median"] for name, figure in found.items() if name.endswith(str(chunk))]
        figures[f"mujoco_fraction_min_chunk_{chunk}"] = min(several)


def exactness(options: argparse.Namespace, robotics: bool, figures: dict[str, Any]) -> None:
    names = EXACT[:3] if options.quick else [*EXACT, *(EXACT_ROBOTICS if robotics else ())]
    found = {gym_id: restored(gym_id, 50 if options.quick else 200) for gym_id in names}
    figures["restore"] = found
    figures["restore_wrong"] = sum(each["equal"] is False for each in found.values())
    figures["restore_refused"] = sum(each["refused"] for each in found.values())


def rivals(options: argparse.Namespace, robotics: bool, figures: dict[str, Any]) -> None:
    if options.envpool is None:
        figures["envpool"] = "left out: no --envpool"
        return
    tasks = TASKS[:1] if options.quick else TASKS
    found = {task: envpool_ratio(options.envpool, task, 64, 1 if options.quick else 5) for task in tasks}
    figures["envpool"] = found
    for kind in ("shared", "alone"):
        figures[f"envpool_ratio_{kind}"] = min(each[kind]["median"] for each in found.values())


def driving(options: argparse.Namespace, robotics: bool, figures: dict[str, Any]) -> None:
    figures |= driver(64 if options.quick else 256, 1 if options.quick else 3)


PARTS: Mapping[str, Callable[[argparse.Namespace, bool, dict[str, Any]], None]] = {
    "fractions": fractions,
    "restore": exactness,
    "envpool": rivals,
    "driver": driving,
}

if __name__ == "__main__":
    main()
