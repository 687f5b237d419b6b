"""Episodes of envpool 1.2.5's MetaWorld in C++, for ``benchmarks/environments.py``.

It runs in an environment of its own:

    python -m venv benchmarks/.envpool
    benchmarks/.envpool/bin/pip install envpool==1.2.5 envpool-assets-mujoco-large==0.3.0

Every line of stdin is a JSON object {"task", "episodes", "seed"}; the answer is a line of JSON with the environment
steps per CPU second. Eight environments step in one thread; the network, the same as on the other side, is asked at
every fifth step.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

VECTOR, HORIZON, CHUNK = 8, 150, 5


def network(seen: Any, weights: Any) -> Any:
    """[n, 21] -> [n, 5, 4]."""
    for matrix in weights[:-1]:
        seen = np.tanh(seen @ matrix)
    return np.tanh(seen @ weights[-1]).reshape(len(seen), CHUNK, 4)


def weights() -> list[Any]:
    """Of a network 21-64-64-20; the same numbers on both sides."""
    random = np.random.default_rng(0)
    sizes = ((21, 64), (64, 64), (64, 20))
    return [(random.standard_normal(size) / size[0] ** 0.5).astype(np.float32) for size in sizes]


def rate(env: Any, matrices: Any, episodes: int) -> float:
    started = time.process_time()
    for _ in range(episodes // VECTOR):
        seen, _ = env.reset()
        for step in range(HORIZON):
            if step % CHUNK == 0:
                lean = np.concatenate((seen[:, :18], seen[:, 36:]), 1).astype(np.float32)
                actions = network(lean, matrices)
            seen, *_ = env.step(np.ascontiguousarray(actions[:, step % CHUNK]))
    return episodes // VECTOR * VECTOR * HORIZON / (time.process_time() - started)


def main() -> None:
    import envpool

    made: dict[str, Any] = {}
    matrices = weights()
    print(json.dumps({"ready": 1}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        name = "MetaWorld/" + "".join(part.capitalize() for part in asked["task"][:-3].split("-")) + "-v3"
        if name not in made:
            limits = {"num_envs": VECTOR, "num_threads": 1, "max_episode_steps": HORIZON + 1}
            made[name] = envpool.make(name, env_type="gymnasium", seed=asked["seed"], **limits)
        print(json.dumps({"rate": rate(made[name], matrices, asked["episodes"])}), flush=True)


if __name__ == "__main__":
    main()
