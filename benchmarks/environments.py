"""Environment steps per CPU second: MetaWorld's own stepping, ours, and physics alone, in one run.

    python benchmarks/environments.py [--quick] [--json FILE]

One core; random actions; every figure is the best of six rounds, because other work on the machine only ever slows one
down. "pool" is a whole ``Pool.run`` in this process (chunks of 5, groups of 8 from one initial state, resets included).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from common import parser_of, save

from autotelic.envs.metaworld import MetaWorldSimulator
from autotelic.envs.pool import EpisodeRequest, Pool

TASKS = ("drawer-open-v3", "reach-v3", "push-v3")
CHUNK = 5
ROUNDS = 6


def best(works: dict[str, Callable[[], int]]) -> dict[str, float]:
    """The largest rate of what each counts per CPU second; rounds take turns, so that all see the same load."""
    rates = dict.fromkeys(works, 0.0)
    for _ in range(ROUNDS):
        for name, work in works.items():
            started = time.process_time()
            count = work()
            rates[name] = max(rates[name], count / (time.process_time() - started))
    return rates


def measure(task: str, chunks: int) -> dict[str, float]:
    """Rates in steps per CPU second, and costs in microseconds."""
    simulator = MetaWorldSimulator(task)
    simulator.reset(0)
    start = simulator.save()
    simulator.reset(1)
    other = simulator.save()
    actions = np.random.default_rng(0).uniform(-1, 1, (chunks, CHUNK, 4)).astype(np.float32)

    def physics() -> int:
        simulator.restore(start)
        low, high = simulator.env.mocap_low, simulator.env.mocap_high
        for x, y, z, force in actions.reshape(-1, 4).tolist():
            position = simulator.data.mocap_pos[0] + 0.01 * np.array((x, y, z))
            simulator.data.mocap_pos[0] = np.clip(position, low, high)
            simulator.data.ctrl[:] = force, -force
            mujoco.mj_step(simulator.model, simulator.data, 5)
        return actions.size // 4

    def metaworld() -> int:
        simulator.restore(start)
        simulator.env.curr_path_length = -actions.size  # it refuses more than 500 steps
        for action in actions.reshape(-1, 4):
            simulator.env.step(action)
        return actions.size // 4

    def lean() -> int:
        simulator.restore(start)
        for chunk in actions:
            simulator.step(chunk)
            simulator.observe()
        return actions.size // 4

    def restores() -> int:
        for _ in range(500):
            simulator.restore(start)
            simulator.restore(other)
        return 1000

    def resets() -> int:
        for seed in range(10):
            simulator.reset(seed)
        return 10

    name = f"metaworld/{task}"
    with Pool([name], chunk=CHUNK, workers=0) as pool:
        requests = [EpisodeRequest(name, seed, CHUNK * chunks // 8) for seed in range(4) for _ in range(8)]

        def whole() -> int:
            return sum(
                episode.steps for episode in pool.run(requests, lambda rows, observations: actions[rows % chunks])
            )

        works = {"physics": physics, "metaworld": metaworld, "lean": lean, "pool": whole}
        rates = best({**works, "restore": restores, "reset": resets})
    costs = {f"{name}_us": 1e6 / rates.pop(name) for name in ("restore", "reset")}
    return {**rates, **costs}


def main() -> None:
    options = parser_of(__doc__, "a fifth of the steps").parse_args()
    results: dict[str, Any] = {}
    for task in TASKS:
        figures = measure(task, 80 if options.quick else 400)
        results[task] = {name: round(value, 1) for name, value in figures.items()}
        ours, theirs, limit = (figures[name] for name in ("pool", "metaworld", "physics"))
        print(
            f"{task:16s} pool {ours:6.0f} steps/CPU s = {ours / theirs:.1f} x MetaWorld, {ours / limit:.2f} x physics; "
            f"restore {figures['restore_us']:.1f} us, reset {figures['reset_us'] / 1000:.1f} ms"
        )
    save(options, {"cpu_seconds": round(time.process_time(), 1), "results": results})


if __name__ == "__main__":
    main()
