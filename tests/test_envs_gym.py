"""Any Gymnasium environment by a short spec."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from autotelic.envs import simulator as registry
from autotelic.envs.gym_simulator import GymSimulator
from autotelic.envs.pool import EpisodeRequest, Pool
from autotelic.envs.simulator import EnvSpec, Outcome, Refusal, register, resolve, spec_of
from autotelic.errors import UsageError

DOC = Path(__file__).parents[1] / "docs" / "environments.md"


def never(outcome: Outcome) -> bool:
    return False


def spec(name: str, **changes) -> EnvSpec:
    return EnvSpec(**{"id": name, "instruction": "do it", "max_episode_steps": 200, "success": never, **changes})


@pytest.fixture
def registered():
    before = dict(registry._SPECS)
    yield register
    registry._SPECS.clear()
    registry._SPECS.update(before)


def test_the_documents_cartpole_runs_as_a_script(tmp_path):
    (snippet,) = (block for block in re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S) if "CartPole" in block)
    code_lines = [line for line in [*snippet.split("register(")[0].splitlines(), "register"] if line.strip()]
    assert len(code_lines) <= 10, "joining is promised to take about ten lines"
    script = tmp_path / "script.py"
    script.write_text(snippet)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "10 of 10 balanced\n"


@pytest.mark.parametrize("part", ["demonstrate(", "sealed(", "see=True"])
def test_the_documents_other_snippets_run(part):
    (snippet,) = (block for block in re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S) if part in block)
    exec(compile(snippet, str(DOC), "exec"), {"__name__": "document"})


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "FrozenLake-v1", "Blackjack-v1"])
def test_interleaved_episodes_equal_gymnasiums_own(name):
    simulator = GymSimulator(spec(name))
    random = np.random.default_rng(0)
    scripts = random.uniform(-1, 1, (2, 6, 5, simulator.action_size)).astype(np.float32)
    states = []
    for seed in (0, 1):
        simulator.reset(seed)
        states.append(simulator.save())
    seen: list[list[np.ndarray]] = [[], []]
    for chunk in range(6):
        for episode in (0, 1):
            simulator.restore(states[episode])
            simulator.step(scripts[episode, chunk])
            seen[episode].append(simulator.observe())
            states[episode] = simulator.save()
    env = gymnasium.make(name).unwrapped
    for episode in (0, 1):
        env.reset(seed=episode)
        over = False
        for chunk in range(6):
            for action in scripts[episode, chunk]:
                if not over:
                    observation, _, over, _, _ = env.step(simulator.decode(action))
            flat = gymnasium.spaces.flatten(env.observation_space, observation).astype(np.float32)
            np.testing.assert_array_equal(seen[episode][chunk], flat)


def test_a_saved_state_can_be_restored_twice():
    simulator = GymSimulator(spec("FrozenLake-v1"))  # slippery: its random numbers are part of the state
    simulator.reset(3)
    state = simulator.save()
    script = np.eye(4, dtype=np.float32)[np.arange(20) % 4]
    ends = []
    for _ in range(2):
        simulator.restore(state)
        simulator.step(script)
        ends.append((simulator.observe().tolist(), simulator._steps))
    assert ends[0] == ends[1]


def test_actions_by_hand():
    torque = GymSimulator(spec("Pendulum-v1")).decode
    assert [torque(np.array([x], np.float32)).item() for x in (-1, 0, 0.5, 1, 7)] == [-2, 0, 1, 2, 2]
    choose = GymSimulator(spec("Acrobot-v1")).decode
    assert [choose(np.array(x)) for x in ([0.2, 0.1, 0.1], [-1, -1, 0])] == [0, 2]
    with pytest.raises(Refusal, match=r"Blackjack-v1.*|.*supported are Discrete and Box"):
        GymSimulator(spec("test/MultiBinary-v0"))


class Many(gymnasium.Env):
    """An action space that is not supported, and a state that cannot be copied."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space: gymnasium.Space = gymnasium.spaces.MultiBinary(3)

    def __init__(self):
        self.handle = (x for x in range(3))  # generators cannot be copied, like handles of a C++ library
        self.value = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.value = self.np_random.uniform()
        return np.full(2, self.value, np.float32), {}

    def step(self, action):
        self.value += 0.1
        return np.full(2, self.value, np.float32), 1.0, self.value > 2, False, {"value": self.value}


class One(Many):
    action_space = gymnasium.spaces.Discrete(2)


gymnasium.register("test/MultiBinary-v0", Many)
gymnasium.register("test/One-v0", One)


def save(env):
    return env.value


def restore(env, value):
    env.value = value


def test_a_state_that_cannot_be_copied_is_refused_unless_the_spec_says_how():
    simulator = GymSimulator(spec("test/One-v0"))
    simulator.reset(0)
    with pytest.raises(Refusal, match=r"test/One-v0.*cannot be copied.*give its EnvSpec save and restore"):
        simulator.save()
    simulator = GymSimulator(spec("test/One-v0", save=save, restore=restore))
    simulator.reset(0)
    state = simulator.save()
    simulator.step(np.zeros((3, 2), np.float32))
    after = simulator.observe()
    simulator.restore(state)
    simulator.step(np.zeros((3, 2), np.float32))
    np.testing.assert_array_equal(simulator.observe(), after)
    with pytest.raises(ValueError, match="both save and restore"):
        spec("test/One-v0", save=save)


def heavier(outcome: Outcome) -> bool:
    return outcome.total_reward == outcome.steps == 4 and not outcome.terminated and outcome.info["value"] > 0.3


def test_success_judges_the_outcome_and_the_end_freezes():
    simulator = GymSimulator(spec("test/One-v0", save=save, restore=restore, success=heavier))
    simulator.reset(0)
    assert not simulator.success()
    simulator.step(np.zeros((4, 2), np.float32))
    assert simulator.success()
    simulator.step(np.zeros((40, 2), np.float32))
    frozen = simulator.observe()
    simulator.step(np.zeros((5, 2), np.float32))
    np.testing.assert_array_equal(simulator.observe(), frozen)
    assert not simulator.success() and simulator.terminated


def balance(env, observation):
    falling = observation[2] + observation[3]
    return np.array([-falling, falling], np.float32)


def upright(outcome: Outcome) -> bool:
    return outcome.steps >= 50 and not outcome.terminated


def test_names_experts_and_the_pool(registered):
    registered("pole", spec("CartPole-v1", success=upright, expert=balance))
    assert spec_of("pole").instruction == "do it" and spec_of("metaworld/reach-v3").max_episode_steps == 150
    with Pool(["pole", "metaworld/reach-v3"], workers=0) as pool:
        assert pool.sizes("pole") == (4, 2) and pool.sizes("metaworld/reach-v3") == (21, 4)
        (demonstration,) = pool.demonstrate("pole", [4], horizon=100, settle=5)
        assert demonstration.actions.shape == (55, 2) and demonstration.seed == 4
        mixed = [EpisodeRequest("pole", 0, 5), EpisodeRequest("metaworld/reach-v3", 0, 5)]
        with pytest.raises(ValueError, match=r"one run needs.*\(4, 2\), \(21, 4\)"):
            pool.run(mixed, lambda rows, observations: observations)


def test_specs_that_cannot_join(registered):
    with pytest.raises(ValueError, match="cannot be sent to worker processes"):
        registered("x", spec("CartPole-v1", kwargs={"handle": (x for x in range(3))}))
    registered("by lambda", spec("CartPole-v1", success=lambda outcome: True))
    registered("metaworld/mine", spec("CartPole-v1"))
    registered("metaworld/mine", spec("CartPole-v1"))  # the same again, as when a module is imported in a worker
    registered("metaworld/mine", spec("CartPole-v1", chunk=2))  # a file may mend what it registered
    assert spec_of("metaworld/mine").chunk == 2
    registered("mountain", spec("MountainCar-v0"))
    with pytest.raises(UsageError, match="did you mean mountain"):
        spec_of("mountian")
    with pytest.raises(UsageError, match=r"did you mean .*metaworld/push-v3"):
        spec_of("push-v3")
    registered("mine/hill", spec("MountainCar-v0"))
    assert [resolve(name) for name in ("mountain", "hill", "push-v3")] == ["mountain", "mine/hill", "metaworld/push-v3"]
    with pytest.raises(UsageError, match="did you mean push-v3"):
        resolve("psh-v3")
    registered("yours/hill", spec("MountainCar-v0"))
    with pytest.raises(UsageError, match="'hill' may be mine/hill or yours/hill: write the whole name"):
        resolve("hill")
    with Pool(["mountain"], workers=0) as pool, pytest.raises(Refusal, match="no scripted expert"):
        pool.demonstrate("mountain", [0], horizon=5, settle=0)


def falls(outcome: Outcome) -> bool:
    return outcome.steps >= 12 and not outcome.terminated


@pytest.mark.parametrize("workers", [0, 2])
def test_rewards_of_chunks_and_the_end_that_the_environment_says(registered, workers):
    registered("gym/falling", EnvSpec("CartPole-v1", "keep it up", 12, falls, latched=False, chunk=2))
    with Pool(["gym/falling"], workers=workers) as pool:
        left = lambda rows, seen: np.tile(np.array([1, 0], np.float32), (len(rows), 2, 1))  # noqa: E731
        requests = [EpisodeRequest("gym/falling", seed, 12) for seed in range(3)]
        episodes = pool.run(requests, left, oracle=True, rewards=True)
        blind = pool.run(requests, left)
        with pytest.raises(ValueError, match="oracle=True"):
            pool.run(requests, left, rewards=True)
    for episode, unjudged in zip(episodes, blind, strict=True):
        alone = gymnasium.make("CartPole-v1")
        alone.reset(seed=episode.seed)
        paid, ended = [], False
        while not ended:
            _, reward, ended, _, _ = alone.step(0)
            paid.append(reward)
        assert episode.rewards is not None and episode.rewards.shape == (len(episode.actions),)
        assert episode.rewards.sum() == sum(paid) < 12 and episode.terminated and episode.success is False
        assert unjudged.rewards is None and unjudged.terminated is None and len(unjudged.actions) == 6


def test_a_success_that_is_not_latched_is_that_of_the_last_state(registered):
    early = lambda outcome: outcome.steps == 2  # noqa: E731
    for latched in (True, False):
        registered(f"gym/early-{latched}", EnvSpec("CartPole-v1", "be early", 6, early, latched=latched, chunk=2))
    for latched, steps in ((True, 2), (False, 6)):
        with Pool([f"gym/early-{latched}"], workers=0) as pool:
            sway = lambda rows, seen: np.tile(np.array([[1, 0], [0, 1]], np.float32), (len(rows), 1, 1))  # noqa: E731
            (episode,) = pool.run([EpisodeRequest(f"gym/early-{latched}", 0, 6)], sway, oracle=True)
        assert (episode.success, episode.steps) == (latched, steps)


def test_an_observation_is_flattened_as_gymnasium_flattens_it() -> None:
    class Mixed(gymnasium.Env):
        action_space = gymnasium.spaces.Discrete(2)
        observation_space = gymnasium.spaces.Dict(
            {
                "matrix": gymnasium.spaces.Box(-1, 1, (2, 3), np.float64),
                "count": gymnasium.spaces.Discrete(4, start=2),
                "whole": gymnasium.spaces.Box(0, 9, (2,), np.int16),
                "pair": gymnasium.spaces.Tuple((gymnasium.spaces.MultiBinary(3), gymnasium.spaces.Box(-1, 1, ()))),
            }
        )

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.0, False, False, {}

    simulator = GymSimulator(EnvSpec(make=Mixed, instruction="x", max_episode_steps=3, success=never), Mixed())
    for seed in range(5):
        simulator.reset(seed)
        wanted = gymnasium.spaces.utils.flatten(simulator.env.observation_space, simulator._observation)
        np.testing.assert_array_equal(simulator.observe(), np.asarray(wanted, np.float32))
        simulator.step(np.zeros((1, 2), np.float32))
        wanted = gymnasium.spaces.utils.flatten(simulator.env.observation_space, simulator._observation)
        np.testing.assert_array_equal(simulator.observe(), np.asarray(wanted, np.float32))
    given = simulator.observe()
    given[:] = 7
    assert not (simulator.observe() == 7).all(), "what is given is the caller's own"
