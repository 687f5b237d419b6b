"""MetaWorld: the fast path against MetaWorld's own, for all 50 tasks."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from metaworld.env_dict import ENV_CLS_MAP
from scipy.spatial.transform import Rotation

from autotelic.envs.metaworld import OBSERVATION, TASKS, MetaWorldSimulator, _Rotation

CHUNKS, C = 8, 5


def scripted(simulator: MetaWorldSimulator, seed: int) -> np.ndarray:
    """[CHUNKS, C, 4] of the expert, disturbed, so that the hand meets objects."""
    simulator.reset(seed)
    expert, random, chunks = simulator.expert(), np.random.default_rng(seed), []
    for _ in range(CHUNKS):
        chunk = np.repeat(expert()[None], C, 0) + 0.2 * random.standard_normal((C, 4))
        chunks.append(chunk.astype(np.float32))
        simulator.step(chunks[-1])
    return np.stack(chunks)


def lean(simulator: MetaWorldSimulator, chunk: np.ndarray) -> tuple[np.ndarray, float, float]:
    simulator.step(chunk)
    reward, info = simulator.judge()
    return simulator.observe(), reward, info["success"]


@pytest.mark.parametrize("task", TASKS)
def test_lean_interleaved_steps_equal_metaworlds_own(task):
    simulator = MetaWorldSimulator(task)
    scripts = [scripted(simulator, seed) for seed in (7, 8)]

    own, apart = [], []
    for seed, script in zip((7, 8), scripts, strict=True):
        simulator.reset(seed)
        for chunk in script:
            for action in chunk:
                observation, _, _, _, info = simulator.env.step(action)
            own.append((np.concatenate((observation[:18], observation[36:])), info["success"]))
        simulator.reset(seed)
        apart += [lean(simulator, chunk) for chunk in script]

    states, interleaved = [], ([], [])
    for seed in (7, 8):
        simulator.reset(seed)
        states.append(simulator.save())
    for chunks in zip(*scripts, strict=True):
        for episode in (0, 1):
            simulator.restore(states[episode])
            interleaved[episode].append(lean(simulator, chunks[episode]))
            states[episode] = simulator.save()

    for (expected, success), fast, turn in zip(own, apart, interleaved[0] + interleaved[1], strict=True):
        np.testing.assert_allclose(fast[0], expected.astype(np.float32), rtol=0, atol=1e-7)
        assert fast[2] == success
        np.testing.assert_array_equal(turn[0], fast[0])
        assert turn[1:] == fast[1:]


@pytest.mark.parametrize("task", ["drawer-open-v3", "push-v3", "sweep-v3", "stick-pull-v3"])
def test_reset_is_decided_by_the_seed_alone_and_is_metaworlds(task):
    fresh = ENV_CLS_MAP[task]()
    fresh.seeded_rand_vec, fresh._freeze_rand_vec = True, False
    fresh._partially_observable, fresh._set_task_called = False, True
    fresh.seed(3)
    fresh.reset()
    simulator = MetaWorldSimulator(task)
    simulator.reset(9)
    other = simulator.observe()
    lean(simulator, np.ones((20, 4), np.float32))
    simulator.reset(3)
    np.testing.assert_array_equal(simulator.data.qpos, fresh.data.qpos)
    np.testing.assert_array_equal(simulator.model.body_pos, fresh.model.body_pos)
    np.testing.assert_array_equal(simulator.env._target_pos, fresh._target_pos)
    assert not np.array_equal(simulator.observe(), other)


def test_looking_changes_nothing():
    simulator = MetaWorldSimulator("push-v3")
    script = scripted(simulator, 4)
    ends = []
    for look in (False, True):
        simulator.reset(4)
        for chunk in script:
            if look:
                simulator.restore(simulator.save())
                simulator.observe()
                simulator.success()
            simulator.step(chunk)
        ends.append(simulator.data.qpos.copy())
    np.testing.assert_array_equal(*ends)


def test_tasks_and_layout():
    assert TASKS.keys() == ENV_CLS_MAP.keys()
    assert len(set(TASKS.values())) == 50
    assert np.concatenate([np.arange(21)[part] for part in OBSERVATION.values()]).tolist() == list(range(21))
    simulator = MetaWorldSimulator("reach-v3")
    simulator.reset(0)
    observation = simulator.observe()
    assert observation.shape == (21,) and observation.dtype == np.float32
    np.testing.assert_allclose(observation[OBSERVATION["hand"]], simulator.data.body("hand").xpos, atol=1e-6)
    np.testing.assert_allclose(observation[OBSERVATION["goal"]], simulator.env._target_pos, atol=1e-6)
    assert not observation[OBSERVATION["second"]].any()


@pytest.mark.parametrize(
    ("matrix", "quaternion"),
    [
        (np.eye(3), (0, 0, 0, 1)),
        (np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]]), (0, 0, 0.5**0.5, 0.5**0.5)),  # a quarter turn about z
        (np.diag([1.0, -1, -1]), (1, 0, 0, 0)),
        (np.diag([-1.0, 1, -1]), (0, 1, 0, 0)),
        (np.diag([-1.0, -1, 1]), (0, 0, 1, 0)),
    ],
)
def test_quaternion_by_hand(matrix, quaternion):
    np.testing.assert_allclose(_Rotation.from_matrix(matrix).as_quat(), quaternion, atol=1e-15)


def test_quaternions_equal_scipys():
    matrices = Rotation.random(200, random_state=0).as_matrix()
    for matrix in matrices:
        ours, theirs = _Rotation.from_matrix(matrix).as_quat(), Rotation.from_matrix(matrix).as_quat()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14)


def test_state_only_runs_need_no_gl():
    code = """
import sys
sys.modules["OpenGL"] = None
import numpy as np
from autotelic.envs.metaworld import MetaWorldSimulator
simulator = MetaWorldSimulator("reach-v3")
simulator.reset(0)
simulator.step(np.zeros((5, 4), np.float32))
assert simulator.observe().shape == (21,) and "torch" not in sys.modules
"""
    for backend in ("osmesa", "egl"):
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "MUJOCO_GL": backend}, check=True)
