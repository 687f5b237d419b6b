"""Suites that others wrote: their specs, experts and missions, each where its package is installed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from autotelic.envs import suites
from autotelic.envs.env_checker import check_env
from autotelic.envs.gym_simulator import GymSimulator
from autotelic.envs.pool import EpisodeRequest, Pool
from autotelic.envs.simulator import (
    STATE,
    EnvSpec,
    Outcome,
    Refusal,
    layout_of,
    make_simulator,
    needing,
    registered,
    spec_of,
)
from autotelic.envs.suites.criteria import Return, Told, earned

PACKAGES = {
    "robotics": "gymnasium_robotics",
    "babyai": "minigrid",
    "minigrid": "minigrid",
    "pusht": "gym_pusht",
    "aloha": "gym_aloha",
    "robosuite": "robosuite",
}
SAMPLES = (
    *("gymnasium/HalfCheetah-v5", "gymnasium/Reacher-v5", "gymnasium/CartPole-v1", "gymnasium/Pendulum-v1"),
    *(
        "robotics/FetchReach-v4",
        "robotics/HandManipulateEgg-v1",
        "robotics/AdroitHandDoor-v1",
        "robotics/PointMaze_UMaze-v3",
    ),
    *("robotics/AntMaze_UMaze-v5", "babyai/GoToObj", "minigrid/DoorKey-5x5", "robosuite/Lift"),
)


def installed(name: str) -> None:
    package = PACKAGES.get(name.partition("/")[0])
    if package is not None:
        pytest.importorskip(package, reason=f"{package} is in the extra {spec_of(name).extra}")


@pytest.fixture
def fetch() -> str:
    installed("robotics/FetchReach-v4")
    return "robotics/FetchReach-v4"


@pytest.fixture
def gotoobj() -> str:
    installed("babyai/GoToObj")
    return "babyai/GoToObj"


def of_suites() -> list[str]:
    return [name for name in registered() if name.partition("/")[0] in {"gymnasium", *PACKAGES}]


def test_specs_import_nothing_that_they_specify() -> None:
    packages = sorted({*PACKAGES.values(), "gymnasium", "mujoco", "dm_control", "torch"})
    code = f"import sys, autotelic.envs; print([m for m in {packages} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert suites.__doc__ and len(of_suites()) > 70


def test_every_mujoco_v5_environment_of_gymnasium_has_a_spec() -> None:
    known = {
        name
        for name in gymnasium.registry
        if name.endswith("-v5") and "mujoco" in str(gymnasium.spec(name).entry_point)
    }
    assert len(known) == 11 and {f"gymnasium/{name}" for name in known} <= set(registered())


@pytest.mark.parametrize("name", [name for name in of_suites() if name.startswith("gymnasium/")])
def test_a_return_that_counts_as_success_is_the_one_of_gymnasiums_registry(name: str) -> None:
    """Other numbers, and their sources, are named."""
    spec, known = spec_of(name), gymnasium.spec(name.partition("/")[2])
    assert spec.max_episode_steps == known.max_episode_steps and not spec.latched and spec.chunk == 1
    if not name.endswith(("Humanoid-v5", "HumanoidStandup-v5", "Pusher-v5", "Walker2d-v5", "Pendulum-v1")):
        assert spec.success == Return(known.reward_threshold, known.max_episode_steps)


def test_a_return_counts_for_whole_episodes_that_did_not_end_before() -> None:
    def outcome(reward: float, steps: int, terminated: bool = False) -> Outcome:
        return Outcome(np.zeros(1, np.float32), reward, steps, terminated, {})

    judge = Return(-3.75, 50)
    assert judge(outcome(-3.7, 50)) and not judge(outcome(-3.8, 50))
    assert not judge(outcome(0, 0)) and not judge(outcome(-1, 49)) and not judge(outcome(-1, 50, terminated=True))
    assert earned(outcome(0.9, 3, terminated=True))
    assert not earned(outcome(0, 3, terminated=True)) and not earned(outcome(1, 3))
    assert not Told("is_success")(outcome(1, 1))


@pytest.mark.parametrize("name", of_suites())
def test_an_environment_has_the_features_layout_and_bounds_of_its_spec(name: str) -> None:
    """Sizes are checked in building; what a spec says of bounds is what the environment says."""
    installed(name)
    if name.startswith(("aloha/", "robosuite/")):
        pytest.skip("seconds to build; SAMPLES and the test of ALOHA build one each")
    simulator = make_simulator(name)
    try:
        simulator.reset(0)
        assert simulator.observe().shape == spec_of(name).features[STATE].shape
        assert not simulator.success()
        space = simulator.env.action_space  # type: ignore[attr-defined]
        feature = spec_of(name).features["action"]
        if isinstance(space, spaces.Box):
            assert np.allclose(space.low, feature.low) and np.allclose(space.high, feature.high)
    finally:
        simulator.close()


@pytest.mark.parametrize("name", SAMPLES)
def test_interleaved_episodes_go_on_bit_for_bit(name: str) -> None:
    installed(name)
    checked = check_env(name)
    assert checked.mode.restores and checked.mode.resets
    assert not [trait.text for trait in checked.traits if trait.good is False]


def test_pusht_gets_an_instance_per_episode_and_runs() -> None:
    installed("pusht/PushT")
    assert not check_env("pusht/PushT").mode.restores
    with Pool(["pusht/PushT"], workers=0) as pool:
        requests = [EpisodeRequest("pusht/PushT", seed, 16) for seed in (0, 0, 1)]
        once, again, other = pool.run(requests, lambda rows, seen: np.zeros((len(rows), 8, 2)), oracle=True)
    assert np.array_equal(once.observations, again.observations)
    assert not np.array_equal(once.observations, other.observations) and once.success is False


def test_aloha_is_seen_from_above_and_its_joints_are_felt() -> None:
    installed("aloha/TransferCube")
    with Pool(["aloha/TransferCube"], workers=1) as pool:
        try:
            pool.build()
        except Refusal as error:
            pytest.skip(str(error))
        assert pool.cameras("aloha/TransferCube") == ("top",) and pool.sizes("aloha/TransferCube") == (14, 14)


class Goals(gymnasium.Env[Any, Any]):
    """A dictionary of goals of any shape."""

    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, achieved: Any, desired: Any) -> None:
        number = spaces.Box(-1, 1, (2,))
        self.observation_space = spaces.Dict(
            {"achieved_goal": achieved, "desired_goal": desired, "observation": number}
        )


def box(size: int) -> spaces.Box:
    return spaces.Box(-1, 1, (size,))


@pytest.mark.parametrize(
    ("achieved", "desired", "told", "found"),
    [
        (box(3), box(3), {}, {"object": slice(0, 3), "goal": slice(3, 6)}),
        (spaces.Dict({"a": box(1), "b": box(2)}), box(3), {}, {"object": slice(0, 3), "goal": slice(3, 6)}),
        (box(3), box(2), {}, {}),
        (box(2), box(2), {"hand": slice(4, 6)}, {"object": slice(0, 2), "goal": slice(2, 4), "hand": slice(4, 6)}),
        (box(3), box(3), {"hand": slice(6, 8)}, {"hand": slice(6, 8)}),
        (box(2), box(2), {"goal": slice(4, 6)}, {"object": slice(0, 2), "goal": slice(4, 6)}),
    ],
    ids=["boxes", "nested", "sizes that differ", "a hand besides", "a hand of another size", "a goal of the spec"],
)
def test_places_follow_from_a_dictionary_of_goals(
    achieved: Any, desired: Any, told: dict[str, slice], found: dict[str, slice], monkeypatch: pytest.MonkeyPatch
) -> None:
    from autotelic.envs import simulator as registry

    spec = EnvSpec(
        make=lambda: Goals(achieved, desired), instruction="x", max_episode_steps=1, success=earned, layout=told
    )
    monkeypatch.setitem(registry._SPECS, "goals", spec)
    assert layout_of("goals") == found


def test_places_of_fetch_are_where_its_observation_has_them(fetch: str) -> None:
    simulator = make_simulator(fetch)
    assert isinstance(simulator, GymSimulator)
    simulator.reset(3)
    seen, numbers = simulator._observation, simulator.observe()
    assert np.allclose(numbers[simulator.layout["object"]], seen["achieved_goal"])
    assert np.allclose(numbers[simulator.layout["goal"]], seen["desired_goal"])
    assert np.allclose(numbers[simulator.layout["hand"]], seen["observation"][:3])
    simulator.close()
    with Pool([fetch], workers=0) as pool:
        assert pool.layout(fetch) == simulator.layout


def test_a_reset_of_what_a_hand_turns_does_not_depend_on_the_one_before(fetch: str) -> None:
    name = "robotics/HandManipulateEgg-v1"
    fresh, used = make_simulator(name), make_simulator(name)
    used.reset(1)
    for simulator in (fresh, used):
        simulator.reset(5)
    assert np.array_equal(fresh.observe(), used.observe())


@pytest.mark.parametrize(("name", "least"), [("FetchReach-v4", 10), ("FetchPickAndPlace-v4", 8)])
def test_scripted_experts_of_fetch_end_at_the_goal(name: str, least: int, fetch: str) -> None:
    name = f"robotics/{name}"
    seeds = list(range(20, 30))
    with Pool([name], workers=0) as pool:
        shown = pool.demonstrate(name, seeds, horizon=50, settle=10)
    assert sum(each.seed == seed for each, seed in zip(shown, seeds, strict=True)) >= least
    for each in shown:
        assert np.linalg.norm(each.observations[-1][0:3] - each.observations[-1][3:6]) < 0.05


def test_the_bot_of_babyai_demonstrates_as_the_mission_of_a_seed_says(gotoobj: str) -> None:
    spec = spec_of(gotoobj)

    def wait(rows: Any, seen: Any) -> Any:
        return np.eye(7)[np.full(len(rows), 6)][:, None]

    with Pool([gotoobj], workers=1) as pool:
        shown = pool.demonstrate(gotoobj, range(8), horizon=64, settle=20)
        episodes = pool.run([EpisodeRequest(gotoobj, seed, 3) for seed in range(8)], wait, oracle=True)
    missions = [each.instruction for each in shown]
    assert [each.seed for each in shown] == list(range(8)) and len(set(missions)) > 3
    assert missions == [spec.told(seed) for seed in range(8)] == [each.instruction for each in episodes]
    assert all(mission.startswith("go to the ") for mission in missions) and not any(e.success for e in episodes)


def test_missions_are_what_a_policy_is_told_and_imitates(gotoobj: str) -> None:
    from autotelic.vla.environments import encode, make_task
    from autotelic.vla.policy import ActionModel, ActionPolicy

    spec = spec_of(gotoobj)
    told = [str(make_task(gotoobj, seed).prompt) for seed in range(6)]
    assert told == [spec.told(seed) for seed in range(6)] and len(set(told)) > 2
    with Pool([gotoobj], workers=0) as pool:
        shown = pool.demonstrate(gotoobj, [5, 1], horizon=64, settle=0)
    policy = ActionPolicy(ActionModel(984, 7, chunk=1, hidden=8, layers=1))
    assert [rollout.task.prompt for rollout in encode(policy, {gotoobj: shown})] == [told[5], told[1]]


def test_a_level_says_nothing_on_standard_output(gotoobj: str, capsys: pytest.CaptureFixture[str]) -> None:
    simulator = make_simulator("babyai/PickupLoc")
    for seed in range(20):  # some of these draw missions that are rejected
        simulator.reset(seed)
    assert capsys.readouterr().out == ""


def test_a_package_that_is_missing_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("robotics/FetchReach-v4", "pusht/PushT", "babyai/GoToObj", "robosuite/Lift"):
        monkeypatch.setitem(sys.modules, PACKAGES[name.partition("/")[0]], None)
        with pytest.raises(Refusal) as caught:
            make_simulator(name)
        extra = spec_of(name).extra
        assert str(caught.value).startswith(f"{name} needs the extra '{extra}' (")
        assert str(caught.value).endswith(f"): pip install 'autotelic[{extra}]'") and "\n" not in str(caught.value)
    with pytest.raises(ImportError, match="mine"), needing("my/own", ""):
        raise ImportError("mine")


def test_extras_of_specs_are_those_of_the_project() -> None:
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = {spec_of(name).extra for name in of_suites()} - {""}
    assert extras == {*PACKAGES} - {"babyai"} and extras <= set(project["optional-dependencies"])


def test_a_demonstration_of_what_is_not_latched_ends_in_success(monkeypatch: pytest.MonkeyPatch) -> None:
    from autotelic.envs import simulator as registry
    from autotelic.envs.demonstrations import _attempt

    def at_one(outcome: Outcome) -> bool:
        return outcome.steps == 1

    def still(env: Any, observation: Any) -> Any:
        return np.zeros(2)

    for latched in (True, False):
        spec = EnvSpec("CartPole-v1", "x", 20, at_one, expert=still, latched=latched)
        monkeypatch.setitem(registry._SPECS, f"brief/{latched}", spec)
        found = _attempt(make_simulator(f"brief/{latched}"), f"brief/{latched}", 0, 10, 2, None)
        assert (found is not None) is latched


def upright(outcome: Outcome) -> bool:
    return outcome.steps >= 10


def catch(env: Any, observation: Any) -> Any:
    falling = observation[2] + observation[3]
    return np.array([-falling, falling]).clip(-1, 1)


POLE = EnvSpec("CartPole-v1", "keep the pole upright", 20, upright, chunk=2, expert=catch)


class Three:
    """A policy that makes chunks of three whatever it is asked for."""

    def __new__(cls, observation_size: int, action_size: int, chunk: int) -> Any:
        from autotelic.vla.policy import ActionModel, ActionPolicy

        return ActionPolicy(ActionModel(observation_size, action_size, chunk=3, hidden=8, layers=1))


def test_a_policy_with_a_chunk_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from autotelic.envs import simulator as registry
    from autotelic.vla.environments import try_out

    monkeypatch.setitem(registry._SPECS, "brief/pole", POLE)
    refused = pytest.raises(ValueError, match=r"ActionPolicy makes chunks of 3, and brief/pole takes 2: say --chunk 3$")
    with Pool(["brief/pole"], workers=0) as pool, refused:
        try_out(Three(4, 2, 2), "brief/pole", pool)


def test_a_run_whose_environment_has_another_chunk_by_now_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from autotelic.cli import main
    from autotelic.envs import simulator as registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry._SPECS, "brief/pole", POLE)
    small = ["--tasks", "brief/pole", "--workers", "-1", "--bc-steps", "2", "--tasks-per-step", "1"]
    assert main(["run", "vla/raft", "--debug", *small, "--output-dir", "run"]) == 0
    monkeypatch.setitem(registry._SPECS, "brief/pole", replace(POLE, chunk=4))
    assert main(["eval", "run", "--episodes", "2"]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.endswith(
        "run began with chunks of 2, and brief/pole takes 4 by now: start a new run, or give its EnvSpec chunk=2"
    )


def test_check_tries_an_environment_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    from autotelic.cli import main

    assert main(["check", "gymnasium/CartPole-v1"]) == 0
    told = capsys.readouterr().out
    assert "gymnasium/CartPole-v1: reset" in told and "none of 40 states is a success" in told
