"""The environments of ``benchmarks/ppo.py``, registered as anybody would register theirs: for ``--use``."""

from __future__ import annotations

from autotelic.envs.simulator import EnvSpec, Outcome, register


def swung(outcome: Outcome) -> bool:
    """Stable-Baselines3's PPO reaches about -155 on the mean."""
    return outcome.steps >= 200 and outcome.total_reward > -300


def balanced(outcome: Outcome) -> bool:
    return outcome.steps >= 500 and not outcome.terminated


def reached(outcome: Outcome) -> bool:
    """Within 2 cm of the mark, which the observation names as a difference in meters."""
    return bool((outcome.observation[-2:] ** 2).sum() < 0.02**2)


HELD = {"chunk": 1, "latched": False}
register("gym/pendulum", EnvSpec("Pendulum-v1", "swing the pendulum up and keep it up", 200, swung, **HELD))  # type: ignore[arg-type]
register("gym/cartpole", EnvSpec("CartPole-v1", "keep the pole up", 500, balanced, **HELD))  # type: ignore[arg-type]
register("gym/reacher", EnvSpec("Reacher-v5", "reach the mark", 50, reached, **HELD))  # type: ignore[arg-type]
