"""What an environment is tried for before it is used, and what follows from it."""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

from autotelic.envs import env_checker, global_generators, joining
from autotelic.envs.env_checker import Mode, check_env
from autotelic.envs.pool import EpisodeRequest, Pool
from autotelic.envs.simulator import EnvSpec, Refusal, View, register

from .strangers import toy_envs as toys
from .strangers.env_doors import named, near, never, spec


@pytest.mark.parametrize(
    ("make", "mode"),
    [
        (toys.Plain, Mode()),
        (toys.BackReference, Mode()),
        (toys.Handle, Mode(restores=False)),
        (toys.Iterates, Mode(restores=False)),
        (toys.Leaves, Mode(resets=False)),
        (toys.GlobalNumpy, Mode(seeded=True)),
        (toys.GlobalRandom, Mode(seeded=True)),
        (toys.Undetermined, Mode(restores=False)),
        (toys.SeedIgnored, Mode()),
    ],
)
def test_the_mode_follows_from_what_is_found(make: Any, mode: Mode) -> None:
    checked = check_env(named(spec(make, success=never)))
    assert checked.mode == mode
    quiet = mode == Mode() and make is not toys.SeedIgnored
    assert bool(checked.warnings) is not quiet, checked.warnings


def test_a_check_leaves_the_callers_generators_alone() -> None:
    name = named(spec(toys.GlobalNumpy))
    np.random.seed(3)
    random.seed(3)
    before = global_generators.get()
    check_env(name)
    with Pool([name], workers=0) as pool:
        pool.run([EpisodeRequest(name, 0, 4)], lambda rows, observations: np.zeros((len(rows), pool.chunk, 2)))
    assert not global_generators.drawn_from(before)


def test_pictures_are_compared_too_and_failing_ones_are_told() -> None:
    class Forgets(toys.Filmed):
        """Its pictures depend on something that a state leaves out."""

        drawn = 0

        def render(self) -> Any:
            WORLD["drawn"] += 1
            return np.full((8, 8, 3), WORLD["drawn"] % 256, np.uint8)

    WORLD = {"drawn": 0}
    view = View(8)
    good = check_env(named(spec(toys.Filmed, success=never)), view=view)
    assert good.mode.restores and any("of main" in trait.text for trait in good.traits)
    forgetful = named(spec(Forgets, success=never))
    assert check_env(forgetful).mode.restores
    assert any("a picture differs" in line for line in check_env(forgetful, view=view).warnings)
    blind = check_env(
        named(spec(toys.NoDrawing, success=never, kwargs={"error": OSError, "render_mode": "rgb_array"})), view=view
    )
    assert blind.mode == Mode() and any("cannot be drawn: OSError: no display" in line for line in blind.warnings)


def test_a_pool_tries_an_environment_once_and_says_what_it_found(caplog: pytest.LogCaptureFixture) -> None:
    name = named(spec(toys.OneStart, success=never))
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "autotelic.envs"), Pool([name], workers=0) as pool:
            pool.build()
            pool.run([EpisodeRequest(name, 0, 2)], lambda rows, observations: np.zeros((len(rows), 2, 2)))
    assert [record.getMessage() for record in caplog.records] == [
        f"{name}: all seeds give one state: 40 episodes are one"
    ]
    assert joining.is_checked(name, None) and not joining.is_checked(name, View())


@pytest.mark.parametrize("make", [toys.Handle, toys.Leaves, toys.Undetermined])
def test_instances_are_used_again_only_if_a_reset_makes_them_as_new(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    real = make.__init__
    monkeypatch.setattr(make, "__init__", lambda self: (built.append(1), real(self))[1])
    name = named(spec(make, success=never))
    with Pool([name], workers=0) as pool:
        pool.build()
        before = len(built)
        act = lambda rows, observations: np.zeros((len(rows), 2, 2))  # noqa: E731
        for _ in range(2):
            pool.run([EpisodeRequest(name, seed, 2) for seed in range(5)], act)
    assert len(built) - before == {toys.Handle: 5, toys.Undetermined: 5, toys.Leaves: 1}[make]


def test_at_most_so_many_instances_are_alive_and_lanes_change_nothing() -> None:
    name = named(spec(toys.Handle, success=near))
    asked: list[int] = []

    def act(rows: Any, observations: Any) -> Any:
        asked.append(len(rows))
        return np.sin(rows[:, None, None] + np.arange(4).reshape(1, 2, 2)) + 0 * observations[:, None, :2]

    requests = [EpisodeRequest(name, seed // 2, 6) for seed in range(10)]
    with Pool([name], workers=0) as pool:
        whole = pool.run(requests, act)
        pool._described[name] = replace(pool._described[name], mode=replace(pool._described[name].mode, room=3))
        few = pool.run(requests, act)
    assert asked[0] == 10 and max(asked[3:]) == 3
    for a, b in zip(whole, few, strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)
    np.testing.assert_array_equal(whole[0].observations[0], whole[1].observations[0])


def test_what_no_episode_can_begin_or_go_on_with_is_refused() -> None:
    broken = named(spec(toys.Wrong, kwargs={"how": "raise", "beyond": -9.0}))
    with pytest.raises(Refusal, match=f"{broken}: no episode can be begun; at step 1: RuntimeError: the simulation"):
        check_env(broken)
    infinite = named(spec(toys.Wrong, kwargs={"how": "nan", "beyond": -9.0}))
    with pytest.raises(Refusal, match="no episode can be begun; number 0 of the observation is nan"):
        check_env(infinite)


def test_a_timeout_must_be_one() -> None:
    with pytest.raises(ValueError, match="timeout -1 must be 0"):
        EnvSpec("CartPole-v1", "x", 5, never, timeout=-1)
    with pytest.raises(ValueError, match="timeout nan must be 0"):
        EnvSpec("CartPole-v1", "x", 5, never, timeout=float("nan"))


def test_specs_of_scripts_may_hold_what_has_no_name() -> None:
    register("strangers/lambda", EnvSpec("CartPole-v1", "x", 5, success=lambda outcome: outcome.steps > 3))
    with pytest.raises(ValueError, match=r"cannot be sent to worker processes \(TypeError: .*generator"):
        register("strangers/generator", EnvSpec("CartPole-v1", "x", 5, never, kwargs={"it": (x for x in ())}))


def test_pictures_change_nothing_where_global_generators_are_drawn_from() -> None:
    class Filmed(toys.Filmed, toys.GlobalRandom):
        """Starts and moves at random, and is filmed."""

    for kwargs in ({}, {"render_mode": "rgb_array"}):
        name = named(spec(Filmed, success=never, kwargs=kwargs))
        with Pool([name], workers=0) as pool:
            pool._painters = pool._workers
            act = lambda rows, observations: np.zeros((len(rows), 2, 2))  # noqa: E731
            requests = [EpisodeRequest(name, seed, 6) for seed in (0, 1)]
            plain, filmed, again = (pool.run(requests, act, render=view) for view in (None, View(8), View(8)))
        for a, b, c in zip(plain, filmed, again, strict=True):
            np.testing.assert_array_equal(a.observations, b.observations)
            np.testing.assert_array_equal(b.frames, c.frames)
            np.testing.assert_array_equal(a.observations, c.observations)


def test_spaces_that_a_reset_makes_anew_are_seeded_too() -> None:
    class Anew(toys.Samples):
        """Makes its action space at every reset, and draws from it."""

        def begin(self) -> None:
            self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    class Quiet(Anew):
        """Does not draw from it."""

        move = toys.Plain.move

    drawing, quiet = (check_env(named(spec(make, success=never))) for make in (Anew, Quiet))
    assert drawing.mode == quiet.mode == Mode() and not quiet.warnings
    assert [line for line in drawing.warnings if "draws from its action_space" in line] == drawing.warnings


@pytest.mark.parametrize(("make", "own"), [(toys.Plain, True), (toys.SharedCount, False), (toys.GlobalNumpy, False)])
def test_cheap_environments_get_an_instance_per_episode_unless_instances_disturb_each_other(
    make: Any, own: bool
) -> None:
    name = named(spec(make, success=near))
    checked = check_env(name)
    assert checked.mode.restores and checked.mode.own is own and checked.mode.turns is not own
    assert any("an instance per episode is faster" in trait.text for trait in checked.traits) is own
    requests = [EpisodeRequest(name, seed // 3, 6) for seed in range(9)]
    act = lambda rows, seen: np.sin(rows[:, None, None] + np.arange(4).reshape(1, 2, 2)) + 0 * seen[:, None, :2]  # noqa: E731
    with Pool([name], workers=0) as pool:
        found = pool.run(requests, act)
        assert bool(pool._workers[0]._worker.idle or pool._workers[0]._worker.episodes)
        known = pool._described[name]
        assert known.mode.own is own
        pool._described[name] = replace(known, mode=replace(known.mode, own=False))
        turns = pool.run(requests, act)
    for a, b in zip(found, turns, strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)


def test_instances_are_spared_where_they_are_large_slow_to_build_or_hardly_dearer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = named(spec(toys.Plain, success=near))
    assert check_env(name).mode.own
    for constant, value in (("MEMORY", 100), ("BUILDING", 0.0), ("DEAR", 1e9)):
        with monkeypatch.context() as patched:
            patched.setattr(env_checker, constant, value)
            mode = check_env(name).mode
            assert not mode.own and bool(mode.room) is (constant != "MEMORY")
