"""Several cameras, from an environment's own pictures to a policy: the example, and what does not fit is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

from autotelic.cli import main
from autotelic.envs import simulator as registry
from autotelic.envs.gym_simulator import GymSimulator
from autotelic.envs.lerobot_dataset import layout_of_dataset, read_demonstrations
from autotelic.envs.pool import EpisodeRequest, Pool
from autotelic.envs.simulator import EnvSpec, Feature, Outcome, Refusal, View, make_simulator, register, spec_of
from autotelic.errors import UsageError
from autotelic.plugins import module_at
from autotelic.vla.actor import RobotActor
from autotelic.vla.chunk_policy import Seen
from autotelic.vla.cloning import Cloning, clone
from autotelic.vla.environments import hand_centred, make_task
from autotelic.vla.policy import ActionModel, ActionPolicy
from autotelic.vla.vision import Vision

EXAMPLE = Path(__file__).parent.parent / "examples" / "two_cameras.py"
CAMERAS = ("agentview_image", "eye_in_hand_image")


@pytest.fixture(scope="module")
def arm() -> Iterator[Any]:
    """The example's module, imported as ``--use`` imports it."""
    path = list(sys.path)
    yield module_at(str(EXAMPLE))
    sys.path[:] = path


@pytest.fixture(scope="module")
def pool(arm: Any) -> Iterator[Pool]:
    with Pool(["arm"], workers=1) as pool:
        yield pool


@pytest.fixture
def names() -> Iterator[None]:
    before = dict(registry._SPECS)
    yield
    registry._SPECS.clear()
    registry._SPECS.update(before)


def make_policy(cameras: tuple[str, ...] = CAMERAS, size: int = 64) -> ActionPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = Vision(size=size, cameras=cameras)
        return ActionPolicy(ActionModel(8, 7, chunk=8, head="gaussian", hidden=64, layers=2, vision=vision))


# the example


def test_the_example_is_short_and_offers_what_its_spec_says(pool: Pool) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    assert pool.sizes("arm") == (8, 7), "pictures are not among the numbers"
    assert pool.cameras("arm") == CAMERAS and pool.chunk == 8
    assert pool.features("arm")["observation.images.agentview_image"].shape == (64, 64, 3)


def test_pictures_from_a_worker_are_the_environments_own(arm: Any, pool: Pool) -> None:
    script = np.random.default_rng(0).uniform(-1, 1, (2, 8, 7)).astype(np.float32)
    given: list[Any] = []

    def act(rows: Any, observations: Any, frames: Any) -> Any:
        given.append({camera: film.copy() for camera, film in frames.items()})
        return script[len(given) - 1][None].repeat(len(rows), 0)

    episodes = pool.run([EpisodeRequest("arm", seed, 12) for seed in (3, 4)], act, render=View(64), see=True)
    for row, episode in enumerate(episodes):
        env = arm.Arm()
        observation, _ = env.reset(seed=3 + row)
        looks = [observation]
        for chunk in (script[0], script[1][:4]):
            for action in chunk:
                observation, *_ = env.step(0.1 * action)
            looks.append(observation)
        for camera in CAMERAS:
            np.testing.assert_array_equal(episode.images[camera], np.stack([look[camera] for look in looks]))
            assert all(np.array_equal(g[camera][row], looks[i][camera]) for i, g in enumerate(given))
        np.testing.assert_allclose(episode.observations, np.stack([look["state"] for look in looks]), atol=1e-6)
        assert episode.frames is episode.images[CAMERAS[0]]
    one = pool.run([EpisodeRequest("arm", 3, 0)], act, render=View(16, cameras=(CAMERAS[1],)))[0]
    assert set(one.images) == {CAMERAS[1]} and one.frames.shape == (1, 16, 16, 3)


def test_a_clone_acts_from_both_cameras(pool: Pool) -> None:
    """Neither picture alone says where the cup is, and the robot's own joints do not either."""
    shown = pool.demonstrate("arm", range(12), horizon=40, settle=4, render=View(32))
    policy = make_policy(size=32)
    clone(policy, policy.encode([make_task("arm", d.seed) for d in shown], shown), Cloning(60, 32, 5e-3, shift=0))
    rollouts = RobotActor(policy, pool).act(
        [make_task("arm", 100 + i, 40) for i in range(8)], 1, greedy=True, oracle=True
    )
    assert sum(bool(r.output.success) for r in rollouts) >= 6
    payload = rollouts[0].payload
    frames = {camera: payload[f"frames.{camera}"][:1] for camera in CAMERAS}
    before = policy.choose(Seen(["reach the cup"], payload["states"][:1], frames), None).actions
    for camera, axis in zip(CAMERAS, (0, 1), strict=True):
        other = frames | {camera: frames[camera].flip(2)}  # as if the cup were on the other side
        after = policy.choose(Seen(["reach the cup"], payload["states"][:1], other), None).actions
        moved = (after - before).abs().mean((0, 1))
        assert moved[axis] > 0.1 and moved[axis] == moved.max(), (camera, moved)


def test_two_films_through_one_tower_are_looked_at_each() -> None:
    """Every camera's features are those that a network of that camera alone sees."""
    films = {camera: torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8) for camera in CAMERAS}
    both = make_policy().model
    looks = both.look(films)
    for camera, part in zip(CAMERAS, looks.chunk(2, -1), strict=True):
        alone = make_policy((camera,)).model
        alone.tower.load_state_dict(both.tower.state_dict())
        assert torch.equal(alone.look(films), part)
    with pytest.raises(
        ValueError, match="looks through agentview_image, eye_in_hand_image, and was given frames of main"
    ):
        both.look({"main": films[CAMERAS[0]]})


def test_the_example_runs_resumes_and_is_recorded_with_both_cameras(
    arm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    small = [
        "--debug",
        "--tasks",
        "arm",
        "--obs-type",
        "pixels",
        "--workers",
        "1",
        "--bc-steps",
        "2",
        "--tasks-per-step",
        "1",
    ]
    assert main(["run", "vla/raft", "--use", str(EXAMPLE), *small, "--output-dir", "run"]) == 0
    assert "arm" in (tmp_path / "run" / "README.md").read_text()
    assert main(["record", "run", "shown", "--demonstrations"]) == 0
    assert main(["record", "run", "acted", "--episodes", "1", "--frames", "32"]) == 0
    for name, size in (("shown", 64), ("acted", 32)):
        layout = layout_of_dataset(name)
        assert layout.fps == 20 and layout.cameras == [f"observation.images.{camera}" for camera in CAMERAS]
        (episode, *_) = read_demonstrations(name, cameras=CAMERAS, failures=True)
        assert {film.shape[1:] for film in episode.images.values()} == {(size, size, 3)}
    again = ["--demonstrations-from", "shown", "--chunk", "4", "--output-dir", "again"]
    assert main(["run", "vla/raft", "--use", str(EXAMPLE), *small, *again]) == 0


# what does not fit


def never(outcome: Outcome) -> bool:
    return False


class Looking(gymnasium.Env[Any, Any]):
    """Offers what it is told to."""

    action_space = Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, **parts: Any) -> None:
        self.observation_space = Dict(parts)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return {name: np.zeros(space.shape, space.dtype) for name, space in self.observation_space.items()}, {}

    def step(self, action: Any) -> Any:
        return self.reset()[0], 0.0, False, False, {}


def spec(**parts: Any) -> EnvSpec:
    bounds = {"action": Feature((2,), -4, 4)}
    return EnvSpec(make=Looking, kwargs=parts, instruction="look", max_episode_steps=5, success=never, features=bounds)


IMAGE, NUMBERS = Box(0, 255, (6, 8, 3), np.uint8), Box(-1, 1, (4,), np.float32)


def test_features_that_the_environment_has_not_are_refused_with_both_shapes(names: None) -> None:
    register("looking", spec(front=IMAGE, joints=NUMBERS))
    assert make_simulator("looking").features["observation.state"].shape == (4,)
    for index, (features, line) in enumerate(
        [
            (
                {"observation.state": Feature((9,))},
                r"has observation.state \[9\], the environment has observation.state \[4\]",
            ),
            ({"observation.images.front": Feature((64, 64, 3))}, r"front \[64, 64, 3\], .*front \[6, 8, 3\]"),
            ({"observation.images.wrist": Feature((6, 8, 3))}, r"wrist \[6, 8, 3\], the .*images.front \[6, 8, 3\]"),
            ({"action": Feature((3,), -1, 1)}, r"action \[3\], the environment has action \[2\]"),
        ]
    ):
        wrong = spec(front=IMAGE, joints=NUMBERS)
        register(f"looking/{index}", replace(wrong, features=wrong.features | features))
        with pytest.raises(Refusal, match=line), Pool([f"looking/{index}"], workers=0) as pool:
            pool.build()
    with pytest.raises(UsageError, match='unknown feature "observation'):
        replace(spec(), features={"observation.image": Feature()})


def test_states_where_there_are_pictures_only_are_refused_when_the_run_is_built(
    names: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    register("blind", spec(front=IMAGE))
    monkeypatch.chdir(tmp_path)
    assert main(["run", "vla/raft", "--debug", "--tasks", "blind", "--workers", "1", "--output-dir", "run"]) == 2
    line = capsys.readouterr().err
    assert "blind offers observation.images.front [6, 8, 3] and no numbers (observation.state [0])" in line


def test_pictures_are_never_flattened() -> None:
    """Numbers are flattened as by Gymnasium, in its order; pictures of other channels are not taken for numbers."""
    parts = {"b": NUMBERS, "a": Discrete(3), "front": IMAGE, "side": Box(0, 255, (3, 6, 8), np.uint8)}
    simulator = GymSimulator(spec(), Looking(**parts))
    simulator.reset(0)
    simulator._observation = {
        "b": np.arange(4, dtype=np.float32),
        "a": 2,
        "front": np.full((6, 8, 3), 7, np.uint8),
        "side": np.full((3, 6, 8), 9, np.uint8),
    }
    assert simulator.observation_size == 7 and simulator.observe().tolist() == [0, 0, 1, 0, 1, 2, 3]
    films = simulator.frames(View(6))
    assert {name: (film.shape, int(film.max())) for name, film in films.items()} == {
        "front": ((6, 6, 3), 7),
        "side": ((6, 6, 3), 9),
    }
    assert simulator.decode(np.array([1, -0.5], np.float32)).tolist() == [4, -2], "the spec's bounds"
    with pytest.raises(Refusal, match="no camera 'top': there is front, side"):
        simulator.frame(View(6), "top")
    with pytest.raises(Refusal, match=r"its observation 'stack' is uint8 \[4, 6, 8\], no picture \[H, W, 3\]"):
        GymSimulator(spec(), Looking(stack=Box(0, 255, (4, 6, 8), np.uint8)))


def test_a_saved_policy_of_other_chunks_is_refused(
    arm: Any, names: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_policy().save_pretrained(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    other = ["--model", "saved", "--chunk", "5", "--obs-type", "pixels", "--workers", "1"]
    assert main(["run", "vla/raft", "--debug", "--tasks", "arm", *other, "--output-dir", "run"]) == 2
    assert "policy saved makes chunks of 8, and arm takes 5: say --chunk 8" in capsys.readouterr().err
    register("slow-arm", replace(spec_of("arm"), chunk=4))
    with pytest.raises(UsageError, match="environments of one chunk, and arm has 8, slow-arm has 4: say one chunk"):
        Pool(["arm", "slow-arm"], workers=0)
    with Pool(["arm", "slow-arm"], workers=0, chunk=2) as pool:
        assert pool.chunk == 2


# drawing without a second instance


class Drawn(gymnasium.Env[Any, Any]):
    """Opens a window that cannot be copied when it draws, as pygame's environments do."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space, action_space = NUMBERS, Discrete(2)
    made = 0

    def __init__(self, render_mode: str | None = None) -> None:
        Drawn.made += 1
        self.render_mode, self.window, self.shade = render_mode, None, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.shade = int(self.np_random.integers(100))
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> Any:
        self.shade += 1
        return np.zeros(4, np.float32), 0.0, False, False, {}

    def render(self) -> Any:
        self.window = self.window or iter("window")
        return np.full((4, 4, 3), self.shade, np.uint8)


@pytest.mark.parametrize(("mode", "instances"), [("rgb_array", 1), (None, 2)])
def test_a_second_instance_is_made_only_where_the_first_cannot_draw(mode: str | None, instances: int) -> None:
    kwargs = {} if mode is None else {"render_mode": mode}
    drawn = EnvSpec(make=Drawn, kwargs=kwargs, instruction="draw", max_episode_steps=5, success=never)
    Drawn.made = 0
    simulator = GymSimulator(drawn, Drawn(**kwargs))
    simulator.reset(0)
    first, state = int(simulator.frame(View(4)).max()), simulator.save()
    simulator.step(np.zeros((3, 2), np.float32))
    assert simulator.frame(View(4)).max() == first + 3
    window = simulator._windows.get("window")
    simulator.restore(state)
    assert simulator.frame(View(4)).max() == first
    assert simulator._windows.get("window") is window, "it is opened once"
    assert simulator.env.window is None and Drawn.made == instances


def test_a_hand_of_any_size_is_what_places_are_seen_from() -> None:
    three = spec_of("metaworld/reach-v3").layout
    assert hand_centred(three) == {"origin": 0, "positions": (4, 11, 18), "axes": 3}
    assert hand_centred({"goal": slice(2, 4), "hand": slice(0, 2)}) == {"origin": 0, "positions": (2,), "axes": 2}
    assert hand_centred({"goal": slice(2, 4)}) == {} == hand_centred({"hand": slice(0, 2)})
    flat = ActionModel(5, 2, chunk=2, hidden=8, origin=0, positions=(2,), axes=2)
    assert flat.view(torch.tensor([[1.0, 2.0, 5.0, 7.0, 9.0]])).tolist() == [[4.0, 5.0, 9.0]]
