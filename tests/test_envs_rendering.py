"""The three qualities, cameras, and GL that fails; skipped on machines without GL.

Pictures are taken in other processes: OSMesa and torch do not share one well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from ctypes.util import find_library
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from autotelic.envs.gym_simulator import GymSimulator
from autotelic.envs.pool import EpisodeRequest, Pool
from autotelic.envs.simulator import EnvSpec, Outcome, Refusal, Simulator, View, register, spec_of

BACKENDS = [name for name, library in (("osmesa", "OSMesa"), ("egl", "EGL")) if find_library(library)]
needs_gl = pytest.mark.skipif(not BACKENDS, reason="neither libosmesa6 nor libegl1 is installed")
DRAWER, PUSH = "metaworld/drawer-open-v3", "metaworld/push-v3"


def act(rows, observations, frames=None):
    return np.tile(np.array([0, 0, 1, 0], np.float32), (len(rows), 5, 1))


def never(outcome: Outcome) -> bool:
    return False


@pytest.fixture(scope="module")
def pool():
    with pytest.MonkeyPatch.context() as patch:
        if BACKENDS:
            patch.setenv("MUJOCO_GL", BACKENDS[0])
        with Pool([DRAWER, PUSH], workers=1) as pool:
            yield pool


def first(pool: Pool, view: View, environment: str = DRAWER, seed: int = 0, horizon: int = 0) -> np.ndarray:
    return pool.run([EpisodeRequest(environment, seed, horizon)], act, render=view)[0].frames[-1].astype(int)


@needs_gl
@pytest.mark.parametrize("environment", [DRAWER, PUSH])
def test_fast_pictures_show_what_plain_ones_show(pool, environment):
    seen = {}
    for seed in (0, 1):
        for quality in ("fast", "plain"):
            seen[quality, seed] = first(pool, View(64, quality), environment, seed, 20)
        apart = np.abs(seen["fast", seed] - seen["plain", seed])
        assert 0 < apart.mean() < 2.5, "coarse meshes in the same place, of 255 levels"
    moved, followed = (np.abs(seen[quality, 0] - seen[quality, 1]).max(-1) for quality in ("plain", "fast"))
    large = moved > 60
    assert large.sum() > 10, "another seed puts things elsewhere"
    assert ((followed > 30) & large).sum() > 0.7 * large.sum(), "fast pictures follow the state"


@needs_gl
def test_full_pictures_have_shadows_and_physics_never_notices(pool):
    full, plain = first(pool, View(64, "full")), first(pool, View(64, "plain"))
    assert 3 < np.abs(full - plain).mean() < 30, "another light, the same scene"
    requests = [EpisodeRequest(DRAWER, 0, 20)]
    states = [pool.run(requests, act, render=view)[0].observations for view in (None, View(48, "full"), View(48))]
    np.testing.assert_array_equal(states[0], states[1])
    np.testing.assert_array_equal(states[0], states[2])


@needs_gl
def test_cameras_are_right_side_up_and_unknown_ones_are_listed(pool):
    for camera in ("shoulder", "corner", "corner2", "corner4"):
        red, _, blue = np.moveaxis(first(pool, View(64, "fast", (camera,))), -1, 0)
        wood = np.argwhere((red - blue > 20) & (red < 2 * blue + 40))
        assert len(wood) > 300 and wood[:, 0].mean() > 34, f"{camera}: the table is below"
    with pytest.raises(Refusal, match=r"no camera 'side'.*shoulder, topview, corner, corner2"):
        first(pool, View(32, "fast", ("side",)))
    assert first(pool, View(32)).shape == (32, 32, 3), "the pool goes on"


@needs_gl
def test_policies_and_stops_see_the_frames_of_their_rows(pool):
    seen = []

    def watching(rows, observations, frames):
        frames = frames["shoulder"]
        assert frames.shape == (len(rows), 32, 32, 3) and frames.dtype == np.uint8
        seen.append((rows.tolist(), frames.copy()))
        return act(rows, observations)

    def stop(rows, observations, frames):
        assert frames["shoulder"].shape == (len(rows), 32, 32, 3)
        return (rows == 1) & (frames["shoulder"].mean() > 0)

    requests = [EpisodeRequest(DRAWER, seed, 10) for seed in (0, 1)]
    episodes = pool.run(requests, watching, stop=stop, render=View(32), see=True)
    assert [rows for rows, _ in seen] == [[0, 1], [0]]
    np.testing.assert_array_equal(seen[0][1], np.stack([episode.frames[0] for episode in episodes]))
    np.testing.assert_array_equal(seen[1][1][0], episodes[0].frames[1])
    assert episodes[0].frames.shape == (3, 32, 32, 3) and episodes[1].frames.shape == (2, 32, 32, 3)
    fresh = pool.run(requests, watching, render=View(32), see=True, keep=False)
    assert [episode.frames for episode in fresh] == [None, None]
    np.testing.assert_array_equal(seen[3][1][0], episodes[0].frames[1])
    with pytest.raises(ValueError, match=r"see=True.*needs render"):
        pool.run(requests, watching, see=True)


def test_views_are_checked():
    with pytest.raises(ValueError, match="size 0 must be at least 1"):
        View(0)
    with pytest.raises(ValueError, match="'best' must be one of fast, plain, full"):
        View(quality="best")
    assert replace(View(), size=8) == View(8)


def run_script(text: str, backend: str) -> str:
    environment = {**os.environ, "MUJOCO_GL": backend, "SDL_VIDEODRIVER": "dummy"}
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


HALF_WAY = """
import numpy as np
from autotelic.envs import rendering
from autotelic.envs.simulator import RenderingUnavailable, View, make_simulator
simulator = make_simulator("metaworld/reach-v3")
simulator.reset(0)
before, other = simulator.frame(View(32)), simulator.frame(View(24, "plain"))
real, state = rendering.mujoco.mjr_{step}, simulator.observe()
def failing(*arguments):
    raise rendering.mujoco.FatalError("the driver is gone\\nmore of it")
rendering.mujoco.mjr_{step} = failing
try:
    simulator.frame(View(32))
except RenderingUnavailable as error:
    print(error)
def once(*arguments):
    rendering.mujoco.mjr_{step} = real
    failing()
rendering.mujoco.mjr_{step} = once
assert (simulator.frame(View(32)) == before).all(), "a context that is lost is made again"
rendering.mujoco.mjr_{step} = real
assert (simulator.observe() == state).all()
assert (simulator.frame(View(32)) == before).all() and (simulator.frame(View(24, "plain")) == other).all()
simulator.close()
"""


@needs_gl
@pytest.mark.parametrize(("backend", "step"), [*zip(BACKENDS, ("render", "readPixels"), strict=False)])
def test_gl_that_fails_half_way_is_one_line_and_the_simulator_goes_on(backend, step):
    (line,) = run_script(HALF_WAY.replace("{step}", step), backend).splitlines()
    assert line.startswith(f"drawing a picture with MUJOCO_GL={backend} failed (FatalError: the driver is gone)")


class Odd(gymnasium.Env):
    """Renders floats."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def render(self):
        return np.zeros((4, 4, 3))


gymnasium.register("test/Odd-v0", Odd)


def test_odd_frames_and_layouts_are_one_line():
    spec = EnvSpec("test/Odd-v0", "x", 5, never, layout={"goal": slice(1, 3)}, proprioception=slice(0, 1))
    simulator = GymSimulator(spec)
    simulator.reset(0)
    with pytest.raises(Refusal, match=r"'test/Odd-v0' rendered float64 of shape \(4, 4, 3\); pictures are uint8"):
        simulator.frame(View(8))
    with pytest.raises(Refusal, match=r"places 'goal' at 1:4 of an observation, which has 3 numbers"):
        GymSimulator(replace(spec, layout={"goal": slice(1, 4)}))
    with pytest.raises(Refusal, match=r"places 'proprioception' at 0:9"):
        GymSimulator(replace(spec, proprioception=slice(0, 9)))
    register("odd", spec)
    assert spec_of("odd") == spec
    assert spec_of(DRAWER).layout["goal"] == slice(18, 21) and spec_of(DRAWER).proprioception == slice(0, 4)


class Painted(Simulator):
    """A simulator from outside whose pictures have seven pixels, whatever is asked for."""

    observation_size = action_size = 1
    drawn = 0

    def reset(self, seed): ...
    def save(self): ...
    def restore(self, state): ...

    def observe(self):
        return np.zeros(1, np.float32)

    def step(self, actions): ...
    def success(self): ...

    def frame(self, view, camera=""):
        self.drawn += 1
        return np.full((7, 7, 3), self.drawn, np.uint8)


def test_a_simulators_frames_are_checked():
    from autotelic.envs.board import Board, Layout
    from autotelic.envs.env_checker import Mode
    from autotelic.envs.worker import Looks, Tick, Worker

    worker, nobody = Worker({}), np.zeros(0, np.int64)
    worker.simulators[DRAWER] = Painted()
    start = Tick(nobody, nobody, starts=[(0, DRAWER, 0)])
    with pytest.raises(Refusal, match=r"drawer-open-v3.*shape \(7, 7, 3\) and type uint8 from camera 'main'; expected"):
        worker.begin(Board(Layout(1, 21, 5, 4, {"main": 8})), {DRAWER: Mode()}, Looks(render=View(8)))
        worker.tick(start)
    board = Board(Layout(1, 21, 5, 4, {"main": 7}))
    worker.begin(board, {DRAWER: Mode()}, Looks(render=View(7)))
    assert not worker.tick(start)
    assert (
        board.frames["main"].shape == (1, 7, 7, 3) and (board.frames["main"] == worker.simulators[DRAWER].drawn).all()
    )


def test_pictures_are_drawn_only_where_someone_looks():
    with Pool([DRAWER], workers=0, chunk=5) as pool:
        pool._painters = pool._workers
        painted = pool._workers[0]._worker.simulators[DRAWER] = Painted()
        group = [EpisodeRequest(DRAWER, 0, 12)] * 3
        act = lambda rows, observations, *frames: np.zeros((len(rows), 5, 1))  # noqa: E731
        pool.run(group, act)
        assert painted.drawn == 0
        pool.run(group, act, render=View(7), keep=False)
        assert painted.drawn == 0, "nobody sees or keeps them"
        pool.run(group, act, render=View(7), see=True, keep=False)
        assert painted.drawn == 1 + 3 * 2, "one of the common start, and after all chunks but the last"
        episodes = pool.run(group, act, render=View(7))
        assert painted.drawn == 7 + 3 * 3, "kept: after the last chunk too; the start is known"
        assert [episode.frames[:, 0, 0, 0].tolist() for episode in episodes] == [[1, 8, 11, 14], [1, 9, 12, 15],
                                                                                 [1, 10, 13, 16]]  # fmt: skip
