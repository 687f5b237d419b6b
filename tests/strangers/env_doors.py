"""The doors through which cases of environments enter."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium import spaces

from autotelic.check import of_environment
from autotelic.envs.pool import Episode, EpisodeRequest, Pool
from autotelic.envs.simulator import EnvSpec, Outcome, register
from autotelic.options import CheckOptions

ENVS: dict[str, Any] = {"modality": "vla", "entry": "environment", "by": "user"}
_number = itertools.count()


def rewarded(outcome: Outcome) -> bool:
    return outcome.total_reward >= 1


def near(outcome: Outcome) -> bool:
    return float(np.linalg.norm(outcome.observation[:2] - outcome.observation[2:4])) < 0.3


def never(outcome: Outcome) -> bool:
    return False


def spec(make: Callable[..., Any], *, success: Any = rewarded, chunk: int = 2, **changes: Any) -> EnvSpec:
    return EnvSpec(make=make, instruction="go there", max_episode_steps=20, success=success, chunk=chunk, **changes)


def named(each: EnvSpec) -> str:
    """A name of its own for a spec."""
    name = f"strangers/{each.source}-{next(_number)}".replace(":", "-")
    register(name, each)
    return name


def script(seed: int, size: int = 2) -> Any:
    """Twenty actions [20, A] of an episode."""
    return np.random.default_rng(seed).uniform(-1, 1, (20, size)).astype(np.float32)


def played(each: EnvSpec, seeds: int = 12, *, workers: int = 0, size: int = 2, **how: Any) -> list[Episode]:
    """Episodes of a pool, each by its own script, ten steps long."""
    name = named(each)
    chunks: dict[int, int] = {}
    with Pool([name], workers=workers) as pool:

        def act(rows: Any, observations: Any, *frames: Any) -> Any:
            first = [chunks.get(row, 0) for row in rows.tolist()]
            chunks.update({row: c + pool.chunk for row, c in zip(rows.tolist(), first, strict=True)})
            answer = [script(row, size)[c : c + pool.chunk] for row, c in zip(rows.tolist(), first, strict=True)]
            return np.stack(answer)

        return pool.run([EpisodeRequest(name, seed, 10) for seed in range(seeds)], act, oracle=True, **how)


def alone(make: Callable[..., Any], seed: int, steps: int = 10) -> tuple[list[Any], float]:
    """Observations of plain Gymnasium at the start and after every second step, and the rewards' sum."""
    env = make()
    observation, _ = env.reset(seed=seed)
    flat = [np.array(spaces.flatten(env.observation_space, observation), np.float32)]
    total = 0.0
    for step, action in enumerate(script(seed)[:steps]):
        observation, reward, *_ = env.step(action)
        total += float(reward)
        if step % 2:
            flat.append(np.array(spaces.flatten(env.observation_space, observation), np.float32))
    return flat, total


def as_alone(make: Callable[..., Any], **how: Any) -> bool:
    """Whether a pool's episodes are those of plain Gymnasium, to the last bit, with as many successes."""
    stay = {"stop": lambda rows, observations: np.zeros(len(rows), bool)}
    episodes = played(spec(make, **how.pop("changes", {})), **stay, **how)
    wanted = [alone(make, seed) for seed in range(len(episodes))]
    return all(
        np.array_equal(episode.observations, np.stack(flat)) and episode.success == (total >= 1)
        for episode, (flat, total) in zip(episodes, wanted, strict=True)
    )


def repeats(make: Callable[..., Any]) -> bool:
    """Whether episodes do not depend on which others run, where plain Gymnasium cannot say what they are."""
    together, single = played(spec(make)), [played(spec(make), seeds=n + 1)[n] for n in (0, 3)]
    same = [np.array_equal(together[n].observations, each.observations) for n, each in zip((0, 3), single, strict=True)]
    return all(same)


@contextmanager
def listening() -> Iterator[list[str]]:
    """The lines that are logged inside this block."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("autotelic.envs")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def said(each: EnvSpec, pattern: str) -> bool:
    """Whether one of the lines of ``autotelic check`` says this."""
    name = named(each)
    found = of_environment(name, each, CheckOptions("x.py"))
    return any(re.search(pattern, f"{line.name} {line.text}") for line in found)


def in_info(outcome: Outcome) -> bool:
    return bool(outcome.info["is_success"])


def acted(each: EnvSpec, seeds: int = 12, **how: Any) -> Any:
    """Rollouts of a fresh small policy."""
    import torch

    from autotelic.types import Task
    from autotelic.vla.actor import RobotActor
    from autotelic.vla.policy import ActionModel, ActionPolicy

    name = named(each)
    tasks = [Task(f"x/{n}", "go", category="x", seed=n, horizon=10, extra={"environment": name}) for n in range(seeds)]
    with Pool([name], workers=0) as pool, torch.random.fork_rng():
        torch.manual_seed(0)
        policy = ActionPolicy(ActionModel(*pool.sizes(name), chunk=each.chunk, hidden=8, layers=1, head="gaussian"))
        return RobotActor(policy, pool).act(tasks, 1, **how)
