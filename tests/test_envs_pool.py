"""The pool: order, determinism, horizons, the oracle, and workers that die."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from autotelic.envs import demonstrations
from autotelic.envs.oracle import OracleSealed, require_oracle, sealed
from autotelic.envs.pool import Episode, EpisodeRequest, Pool
from autotelic.envs.simulator import Refusal, make_simulator, spec_of
from autotelic.envs.splits import seeds

from .initial_states import assert_disjoint

DRAWER, REACH = "metaworld/drawer-open-v3", "metaworld/reach-v3"
REQUESTS = [
    EpisodeRequest(name, seed, horizon)
    for seed, horizon in ((1, 23), (2, 10))
    for name in (DRAWER, REACH)
    for _ in range(3)
]


def act(rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
    """Different for each row and observation, and free of how rows are batched."""
    phase = rows[:, None, None] + 10 * observations[:, None, :4] + np.arange(5)[None, :, None]
    return np.sin(phase)


@pytest.fixture(scope="module")
def here():
    with Pool([DRAWER, REACH], workers=0) as pool:
        yield pool


@pytest.fixture(scope="module")
def two():
    with Pool([DRAWER, REACH], workers=2) as pool:
        yield pool


def assert_equal(a: list[Episode], b: list[Episode]) -> None:
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left.observations, right.observations)
        np.testing.assert_array_equal(left.actions, right.actions)
        fields = ("environment", "instruction", "seed", "steps", "stopped", "success")
        assert [getattr(left, name) for name in fields] == [getattr(right, name) for name in fields]


def test_number_of_workers_changes_nothing_not_even_the_calls_of_act(here, two):
    logs, results = [], []
    for pool in (here, two):
        pool.lanes = 5
        calls: list[list[int]] = []

        def watched(rows, observations, calls=calls):
            calls.append(rows.tolist())
            return act(rows, observations)

        results.append(pool.run(REQUESTS, watched, oracle=True))
        logs.append(calls)
        pool.lanes = 256
    assert_equal(*results)
    assert logs[0] == logs[1]
    assert logs[0][0] == [0, 1, 2, 3, 4]
    assert all(rows == sorted(rows) and len(rows) <= 5 for rows in logs[0])


MANY = [EpisodeRequest(DRAWER if row % 3 else REACH, row // 2 % 7, 5 * (row % 5) + 3) for row in range(26)]


@pytest.mark.parametrize("lanes", [256, 6])
def test_pipeline_stages_change_the_calls_of_act_and_nothing_else(here, two, lanes):
    logs, results = {}, []
    for pool in (here, two):
        for stages in (1, 2):
            logs[pool, stages] = calls = []

            def watched(rows, observations, calls=calls):
                calls.append(rows.tolist())
                return act(rows, observations)

            stop = lambda rows, observations: observations[:, 0] > 0.1  # noqa: E731
            pool.lanes, pool.pipeline_stages = lanes, stages
            results.append(pool.run(MANY, watched, stop=stop, oracle=True, rewards=True))
            pool.lanes, pool.pipeline_stages = 256, None
    for others in results[1:]:
        assert_equal(results[0], others)
        for a, b in zip(results[0], others, strict=True):
            np.testing.assert_array_equal(a.rewards, b.rewards)
    assert logs[here, 1] == logs[two, 1] and logs[here, 2] == logs[two, 2] != logs[here, 1]
    assert sorted(chain(*logs[here, 1])) == sorted(chain(*logs[here, 2]))
    room = min(lanes, 26)
    assert max(map(len, logs[here, 1])) == room and max(map(len, logs[here, 2])) <= max(room // 2 + 2, 3)


def test_with_two_stages_simulators_work_while_the_policy_decides(two):
    """While ``act`` is asked about one half, the other half's chunk has been sent off."""
    seen = []

    def spying(rows, observations):
        waiting = sum(len(worker._waiting) for worker in two._workers)
        seen.append(waiting)
        return act(rows, observations)

    requests = [EpisodeRequest(DRAWER, seed, 25) for seed in range(8)]
    for stages, most in ((1, 0), (2, 2)):
        seen.clear()
        two.pipeline_stages = stages
        two.run(requests, spying)
        assert max(seen) == most and seen[0] == most
    two.pipeline_stages = None


def test_the_last_picture_of_an_episode_is_spared_where_nobody_sees_it(here):
    """Of three chunks of five, where pictures are not kept, the one after the third; of the others none."""
    from autotelic.envs.episodes import EpisodeRun
    from autotelic.envs.worker import Looks

    requests = [EpisodeRequest(REACH, 0, 15), EpisodeRequest(REACH, 1, 12)]
    run = EpisodeRun(here._workers, requests, 2, Looks(), {}, (21, 4, 5), watched=False)
    rows = np.array([0, 1])
    for steps, last in ((0, set()), (5, set()), (10, {0, 1})):
        run.steps[:] = steps
        (tick,) = run._arguments(rows, [], [])
        assert tick.unseen == last and tick.counts.tolist() == [5, 5 if steps < 10 else 2]
    run.watched = True
    assert run._arguments(rows, [], [])[0].unseen == set()


def test_two_stages_from_64_episodes_on(here):
    for count, calls in ((63, 1), (64, 2)):
        sizes = []
        here.run(
            [EpisodeRequest(REACH, seed % 4, 5) for seed in range(count)],
            lambda rows, seen, sizes=sizes: sizes.append(len(rows)) or act(rows, seen),
        )
        assert len(sizes) == calls and sum(sizes) == count
    with pytest.raises(ValueError, match="pipeline_stages"):
        Pool([REACH], workers=0, pipeline_stages=3)


def test_lanes_change_nothing(here):
    whole = here.run(REQUESTS, act)
    here.lanes = 1
    try:
        assert_equal(whole, here.run(REQUESTS, act))
    finally:
        here.lanes = 256


def test_episodes_equal_stepping_a_simulator_by_hand(here):
    episode = here.run(REQUESTS, act)[4]
    simulator = make_simulator(REACH)
    simulator.reset(1)
    for index, chunk in enumerate(episode.actions):
        np.testing.assert_array_equal(episode.observations[index], simulator.observe())
        simulator.step(chunk[: 23 - 5 * index])
    np.testing.assert_array_equal(episode.observations[-1], simulator.observe())
    assert episode.steps == 23 and episode.actions.shape == (5, 5, 4) and episode.observations.shape == (6, 21)
    assert episode.instruction == spec_of(REACH).instruction and episode.frames is None and episode.success is None


def test_groups_start_in_one_state(here):
    episodes = here.run(REQUESTS, act)
    for group in range(0, len(REQUESTS), 3):
        for member in (1, 2):
            np.testing.assert_array_equal(episodes[group].observations[0], episodes[group + member].observations[0])
            assert not np.array_equal(episodes[group].observations[-1], episodes[group + member].observations[-1])


def test_stop_ends_episodes_and_is_asked_at_chunk_ends_only(two):
    asked: list[int] = []

    def stop(rows, observations):
        asked.extend(rows.tolist())
        return rows % 2 == 0

    episodes = two.run(REQUESTS, act, stop=stop)
    assert [episode.stopped for episode in episodes] == [True, False] * 6
    assert [episode.steps for episode in episodes] == [5, 23, 5, 23, 5, 23, 5, 10, 5, 10, 5, 10]
    assert asked.count(0) == 1 and asked.count(1) == 5 and asked.count(7) == 2


def expert_of(pool: Pool, seed: int, settle: int = 10):
    return pool.demonstrate(REACH, [seed], horizon=200, settle=settle)[0]


def test_success_is_latched_and_ends_an_episode_unless_stop_decides(here):
    actions = expert_of(here, 3).actions
    actions = np.concatenate((actions, np.tile(np.array([0, -1, 1, 0], np.float32), (60, 1))))
    actions = actions[: len(actions) // 5 * 5].reshape(-1, 5, 4)

    def runner():
        chunks = iter(actions)
        return lambda rows, observations: next(chunks)[None]

    request = [EpisodeRequest(REACH, 3, 5 * len(actions))]
    early = here.run(request, runner(), oracle=True)[0]
    late = here.run(request, runner(), oracle=True, stop=lambda rows, observations: np.zeros(len(rows), bool))[0]
    assert early.success and early.steps < 5 * len(actions)
    assert late.success and late.steps == 5 * len(actions) and not late.stopped
    last = late.observations[-1]
    assert np.linalg.norm(last[:3] - last[18:]) > 0.1, "the hand left the goal again"


def test_oracle_is_sealed(here):
    with sealed("the recipe is oracle-free"):
        assert here.run(REQUESTS[:1], act)[0].success is None
        with pytest.raises(OracleSealed, match=r"success.*the recipe is oracle-free"):
            here.run(REQUESTS[:1], act, oracle=True)
        with sealed("inner"):
            pass
        with pytest.raises(OracleSealed, match="the recipe is oracle-free"):
            require_oracle("x")
    require_oracle("x")


def test_bad_requests_and_answers_are_refused_in_one_line(here):
    with pytest.raises(ValueError, match=r"metaworld/drawer-opn.*did you mean metaworld/drawer-open-v3"):
        Pool(["metaworld/drawer-opn"], workers=0)
    with pytest.raises(ValueError, match="not in this pool"):
        here.run([EpisodeRequest("metaworld/push-v3", 0, 5)], act)
    with pytest.raises(ValueError, match=r"act returned shape \(1, 4\).*\(1, 5, 4\)"):
        here.run(REQUESTS[:1], lambda rows, observations: np.zeros((1, 4)))
    with pytest.raises(ValueError, match="stop returned shape"):
        here.run(REQUESTS[:2], act, stop=lambda rows, observations: np.zeros(3, bool))
    assert here.run([], act) == []
    for how in ({"chunk": 0}, {"lanes": 0}, {"workers": -1}):
        with pytest.raises(ValueError, match=r"chunk \(.*\) and lanes \(.*\) start at 1, workers \(.*\) at 0"):
            Pool([REACH], **({"workers": 0} | how))
    with Pool([REACH], chunk=1, lanes=1, workers=0) as least:
        (episode,) = least.run([EpisodeRequest(REACH, 1, 2)], lambda rows, observations: np.zeros((1, 1, 4)))
        assert episode.actions.shape == (2, 1, 4)


def test_an_answer_that_is_not_finite_ends_its_episode_alone(here):
    calls = []

    def answer(rows, observations):
        calls.append(rows.tolist())
        actions = act(rows, observations)
        if len(calls) == 2:
            actions[rows == 1, -1, 0] = np.inf
        return actions

    whole, ended = here.run(REQUESTS[:2], answer, oracle=True)
    alone = here.run(REQUESTS[:1], act, oracle=True)[0]
    np.testing.assert_array_equal(whole.observations, alone.observations)
    assert whole.fault is None and [1 in rows for rows in calls[1:3]] == [True, False]
    request = REQUESTS[1]
    assert ended.fault == f"{request.environment}, seed {request.seed}, after step 5: act answered NaN or infinity"
    assert (ended.steps, len(ended.observations), len(ended.actions), ended.success) == (5, 2, 1, False)


def test_an_exception_in_act_leaves_the_pool_usable(two):
    expected = two.run(REQUESTS, act)

    def failing(rows, observations):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        two.run(REQUESTS, failing)
    assert_equal(expected, two.run(REQUESTS, act))


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("when", ["idle", "in act"])
def test_a_killed_worker_is_replaced_and_nothing_is_lost(two, caplog, when, stages, monkeypatch):
    monkeypatch.setattr(two, "pipeline_stages", stages)
    expected = two.run(REQUESTS, act, oracle=True)
    calls = 0

    def killing(rows, observations):
        nonlocal calls
        calls += 1
        if calls == 3 and when == "in act":
            os.kill(two._workers[1].pid, signal.SIGKILL)
        return act(rows, observations)

    before = two.cpu_seconds
    if when == "idle":
        os.kill(two._workers[0].pid, signal.SIGKILL)
    with caplog.at_level(logging.WARNING):
        episodes = two.run(REQUESTS, killing, oracle=True)
    assert_equal(expected, episodes)
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["killed by SIGKILL"]
    assert two.cpu_seconds > before


def test_a_seed_that_always_raises_ends_its_episode_alone_and_named(two):
    before = two.faults
    expected = two.run(REQUESTS[:1], act, oracle=True)
    good, bad = two.run([REQUESTS[0], EpisodeRequest(REACH, -1, 5)], act, oracle=True)
    assert re.search(rf"{REACH}, seed -1, .*Seed must be", bad.fault) and bad.success is False
    assert bad.steps == 0 and bad.observations.tolist() == [[0] * 21] * 2 and not bad.actions.any()
    assert bad.actions.shape == (1, 5, 4), "whoever looks at the last chunk finds one"
    (seen,) = two.run([EpisodeRequest(REACH, -1, 0)], act)
    assert seen.fault and seen.observations.shape == (1, 21) and len(seen.actions) == 0
    assert good.fault is None and two.faults == before + 2
    assert_equal(expected, [good])


def test_ctrl_c_is_not_the_workers_business(two, caplog):
    expected = two.run(REQUESTS, act)
    for worker in two._workers:
        os.kill(worker.pid, signal.SIGINT)
    time.sleep(0.1)
    assert_equal(expected, two.run(REQUESTS, act))
    assert not caplog.records


def test_workers_load_neither_torch_nor_gl(two):
    import torch  # noqa: F401  (so that a worker which imported our modules would have it)

    two.run(REQUESTS, act)
    for worker in two._workers:
        maps = Path(f"/proc/{worker.pid}/maps").read_text()
        assert "mujoco" in maps and "libtorch" not in maps and "OSMesa" not in maps


def test_scripts_need_no_guard_and_workers_do_not_run_them(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"print('started')\n"
        f"from autotelic.envs.pool import Pool\n"
        f"with Pool([{REACH!r}], workers=1) as pool:\n"
        f"    print(pool.sizes({REACH!r}))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "started\n(21, 4)\n"


def test_cpu_seconds_leave_out_act(here):
    def slow(rows, observations):
        started = time.process_time()
        while time.process_time() - started < 0.05:
            pass
        return act(rows, observations)

    pool, whole = here.cpu_seconds, time.process_time()
    here.run(REQUESTS, slow)
    pool, whole = here.cpu_seconds - pool, time.process_time() - whole
    assert 0 < pool < whole - 5 * 0.05


def test_demonstrations(here, two):
    first, second, third = (pool.demonstrate(REACH, [1, 2, 3], horizon=200, settle=settle) for pool, settle in
                            ((here, 10), (two, 10), (here, 0)))  # fmt: skip
    for a, b, short in zip(first, second, third, strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)
        np.testing.assert_array_equal(a.actions, b.actions)
        assert len(a.observations) == len(a.actions) + 1 == len(short.actions) + 11
        np.testing.assert_array_equal(a.actions[:-10], short.actions)
        assert np.abs(a.actions).max() <= 1 and a.actions.dtype == a.observations.dtype == np.float32
        assert a.settle == 10 and a.instruction == spec_of(REACH).instruction
        simulator = make_simulator(REACH)
        simulator.reset(a.seed)
        simulator.step(short.actions[:-1])
        assert not simulator.success()
        simulator.step(short.actions[-1:])
        assert simulator.success()
    assert [demonstration.seed for demonstration in first] == [1, 2, 3]
    with pytest.raises(Refusal, match="failed on 20 initial states from seed 1 on within 2 steps"):
        two.demonstrate(REACH, [1], horizon=2, settle=0)


class Flaky:
    """Succeeds after two steps, from even millions only."""

    observation_size = action_size = 1
    over = False

    def reset(self, seed):
        self.seed, self.steps = seed, 0

    def observe(self):
        return np.array([self.steps], np.float32)

    def step(self, actions):
        self.steps += len(actions)

    def success(self):
        return self.steps >= 2 and self.seed // demonstrations.RETRY_STRIDE == 2

    def expert(self):
        return lambda: np.zeros(1, np.float32)


def test_a_failing_expert_moves_on_to_the_next_seed():
    found, failed = demonstrations.demonstrate(Flaky(), REACH, 7, horizon=4, settle=3)
    assert failed == [7, 1_000_007] and found.seed == 2_000_007
    assert found.observations[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_splits_are_disjoint_and_states_are_compared(here):
    ranges = [seeds(split, 3, offset=2) for split in ("train", "eval", "probe", "demo", "tune")]
    assert len({seed for split in ranges for seed in split}) == 15
    assert seeds("eval", 2) == [100_000_000, 100_000_001]
    with pytest.raises(ValueError, match="train, eval, probe, demo, tune"):
        seeds("test", 1)
    assert_disjoint(here, REACH, [1, 2, 3], [4, 5])
    with pytest.raises(AssertionError, match="seeds 2 and 2 have the same"):
        assert_disjoint(here, REACH, [1, 2], [2, 3])
