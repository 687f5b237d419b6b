"""PPO of Stable-Baselines3 on a Gymnasium environment, for ``benchmarks/ppo.py``; in an environment of its own:

    python -m venv sb3 && sb3/bin/pip install stable-baselines3==2.9.2 gymnasium==1.4.0 mujoco==3.3.0 \\
        gymnasium-robotics==1.4.2 minigrid==3.2.0 gym-pusht==0.1.8

It reads one JSON object per line: ``env`` (Gymnasium id), ``seed``, ``steps``, ``hyperparameters`` (as the RL Zoo has
them, without code in strings) and ``eval_seeds``. It answers each by a line: returns and successes of the deterministic
policy from these seeds, CPU seconds of training, and the steps that were taken. A success is what the environment says
in its last info, or, where that says nothing, an episode that was paid anything. Dictionaries are flattened, a grid is
one-hot, as in ``envs/suites/minigrid.py``, and PushT's actions are between -1 and 1, as ours are.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import gymnasium
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize


def made(id: str) -> Any:
    """An environment whose observations are vectors."""
    env: Any = gymnasium.make(id)
    if id.startswith("minigrid:"):
        from minigrid.wrappers import OneHotPartialObsWrapper

        env = gymnasium.wrappers.FilterObservation(OneHotPartialObsWrapper(env), ["image", "direction"])
    if id.startswith("gym_pusht:"):  # from pixels of a board of 512
        env = gymnasium.wrappers.RescaleAction(env, -1.0, 1.0)
    dictionary = isinstance(env.observation_space, gymnasium.spaces.Dict)
    return gymnasium.wrappers.FlattenObservation(env) if dictionary else env


def learned(job: dict[str, Any]) -> dict[str, Any]:
    """Train, and evaluate deterministically from given seeds."""
    given = dict(job["hyperparameters"])
    normalize, count = given.pop("normalize", False), given.pop("n_envs", 1)
    for name in ("learning_rate", "clip_range"):
        if isinstance(given.get(name), str):  # "lin_0.001" falls to zero
            initial = float(given[name].removeprefix("lin_"))
            given[name] = lambda left, initial=initial: left * initial
    started = time.process_time()
    envs: Any = make_vec_env(lambda: made(job["env"]), n_envs=count, seed=job["seed"])
    if normalize:
        envs = VecNormalize(envs, gamma=given.get("gamma", 0.99))
    model = PPO("MlpPolicy", envs, seed=job["seed"], device="cpu", **given)
    model.learn(job["steps"])
    seconds, returns, successes = time.process_time() - started, [], []
    env = made(job["env"])
    for seed in job["eval_seeds"]:
        observation, total, over = env.reset(seed=seed)[0], 0.0, False
        while not over:
            seen = envs.normalize_obs(observation) if normalize else observation
            observation, reward, terminated, truncated, info = env.step(model.predict(seen, deterministic=True)[0])
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
        successes.append(bool(info.get("is_success", total > 0)))
    return {"returns": returns, "successes": successes, "cpu": seconds, "steps": model.num_timesteps}


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(learned(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
