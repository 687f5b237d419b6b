"""Workers that die or hang of an episode, and what is left of it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from autotelic.envs import episodes as episodes_module
from autotelic.envs.pool import EpisodeRequest, Pool
from autotelic.envs.simulator import EnvSpec, View

from .strangers import toy_envs as toys
from .strangers.env_doors import named, near, never, spec


def to_the_right(bad: tuple[int, ...]) -> Any:
    """Rows that walk to the right, where the line is; the others walk to the left."""

    def act(rows: Any, observations: Any, *frames: Any) -> Any:
        return np.tile(np.where(np.isin(rows, bad), 1.0, -1.0)[:, None, None], (1, 2, 2))

    return act


def wrong(how: str, **changes: Any) -> EnvSpec:
    return spec(toys.Wrong, success=near, kwargs={"how": how}, **changes)


def test_an_episode_that_kills_or_stops_a_worker_twice_is_over_and_nobody_else_notices() -> None:
    names = {how: named(wrong(how, timeout=1.5 if how == "hang" else 60.0)) for how in ("left", "exit", "hang")}
    with Pool(list(names.values()), workers=1) as pool:
        pool.build()
        safe = pool.run([EpisodeRequest(names["left"], seed, 10) for seed in (5, 6)], to_the_right(()), oracle=True)
        for how, why in (("exit", "exited with code 3"), ("hang", "took longer than 1.5 s")):
            started = time.monotonic()
            requests = [EpisodeRequest(names[how], seed, 10) for seed in (5, 7, 6)]
            good, bad, other = pool.run(requests, to_the_right((1,)), oracle=True)
            assert bad.fault is not None and f"{names[how]}, seed 7, after step 4: its worker process died" in bad.fault
            assert why in bad.fault and "2 times" in bad.fault
            assert (bad.steps, bad.success, bad.observations.shape, bad.actions.shape) == (6, False, (4, 4), (3, 2, 2))
            np.testing.assert_array_equal(bad.observations[-1], bad.observations[-2])
            for mine, alone in zip((good, other), safe, strict=True):
                np.testing.assert_array_equal(mine.observations, alone.observations)
                assert mine.fault is None and mine.success == alone.success
            assert time.monotonic() - started < 60
        assert pool.faults == 2


def test_where_workers_died_often_an_episode_that_kills_one_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a patience of one death the first killer, row 0, is tried again; the next one in the run is not."""
    monkeypatch.setattr(episodes_module, "PATIENCE", 1)
    name = named(wrong("exit"))
    with Pool([name], workers=1, lanes=1) as pool:
        pool.build()
        requests = [EpisodeRequest(name, seed, 10) for seed in (5, 7, 6)]
        one, two, good = pool.run(requests, to_the_right((0, 1)))
    assert one.fault is not None and "seed 5, after step 4" in one.fault and "2 times" in one.fault
    assert two.fault is not None and "seed 7, after step 4" in two.fault and "1 times" in two.fault
    assert good.fault is None and good.steps == 10


def test_one_run_has_robots_of_one_size() -> None:
    def less_seen() -> Any:
        return toys.Relative(toys.Plain())

    names = [named(spec(make, success=never)) for make in (toys.Plain, less_seen)]
    with Pool(names, workers=0) as pool, pytest.raises(ValueError, match=r"one \(observation size, action size\)"):
        pool.run([EpisodeRequest(name, 0, 4) for name in names], to_the_right(()))


def test_frames_of_an_episode_that_cannot_begin_are_black() -> None:
    class NoStart(toys.Filmed):
        def begin(self) -> None:
            if self._np_random_seed == 1:
                raise RuntimeError("no free place")

    name = named(spec(NoStart, success=never))
    with Pool([name], workers=0) as pool:
        pool._painters = pool._workers
        requests = [EpisodeRequest(name, seed, 4) for seed in (0, 1)]
        good, bad = pool.run(requests, to_the_right(()), render=View(8), see=True)
    assert good.fault is None and good.frames is not None and good.frames.any()
    assert bad.fault is not None and "no free place" in bad.fault
    assert bad.frames is not None and bad.frames.shape == (2, 8, 8, 3) and not bad.frames.any()


def test_an_end_of_episodes_by_stop_sees_failed_ones_once_more() -> None:
    name = named(wrong("raise"))
    seen: list[list[int]] = []

    def stop(rows: Any, observations: Any) -> Any:
        seen.append(rows.tolist())
        assert np.isfinite(observations).all()
        return np.zeros(len(rows), bool)

    with Pool([name], workers=0) as pool:
        episodes = pool.run([EpisodeRequest(name, seed, 8) for seed in (5, 6)], to_the_right((0,)), stop=stop)
    assert [len(each.actions) for each in episodes] == [3, 4]
    assert seen == [[0, 1], [0, 1], [0, 1], [1]], "as often as it has chunks"


def test_an_expert_that_always_breaks_is_refused_with_the_reason() -> None:
    def lost(env: Any, observation: Any) -> Any:
        raise RuntimeError("no way from here")

    name = named(spec(toys.Plain, success=never, expert=lost))
    with Pool([name], workers=0) as pool, pytest.raises(ValueError, match=r"failed on 20 .*RuntimeError: no way"):
        pool.demonstrate(name, [0], horizon=20, settle=2)
