"""Pictures of Gymnasium's MuJoCo environments; skipped on machines without GL.

Pictures are taken in other processes: OSMesa and torch do not share one well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import numpy as np
import pytest

from autotelic.envs.gym_simulator import GymSimulator
from autotelic.envs.pool import EpisodeRequest, Pool
from autotelic.envs.simulator import EnvSpec, Outcome, Refusal, Simulator, View, make_simulator, register
from autotelic.errors import UsageError

BACKENDS = [name for name, library in (("osmesa", "OSMesa"), ("egl", "EGL")) if find_library(library)]
needs_gl = pytest.mark.skipif(not BACKENDS, reason="neither libosmesa6 nor libegl1 is installed")


def never(outcome: Outcome) -> bool:
    return False


START = """
import torch._dynamo
import gymnasium
import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from autotelic.envs import rendering
from autotelic.envs.gym_simulator import GymSimulator
from autotelic.envs.simulator import EnvSpec, RenderingUnavailable, Refusal, View

def never(outcome):
    return False

def simulated(kind, hidden=(), **kwargs):
    named = {"id": kind} if isinstance(kind, str) else {"make": kind}
    spec = EnvSpec(**named, instruction="x", max_episode_steps=9, success=never, chunk=1, kwargs=kwargs,
                   hidden_geom_groups=hidden)
    return GymSimulator(spec, None if isinstance(kind, str) else kind(**kwargs))

kept = []
def own(kind, size, **kwargs):
    "An environment that has drawn; kept, or its GL names would be freed in another's context."
    sized = {"render_mode": "rgb_array", "width": size, "height": size, **kwargs}
    env = gymnasium.make(kind, **sized) if isinstance(kind, str) else kind(**sized)
    kept.append(env)
    env.reset(seed=0)
    env.render()
    return env

def script(simulator, seed, steps=5):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, simulator.action_size)).astype(np.float32)

def apart(kind, size=40, disturb=lambda: None, named="", **kwargs):
    "The largest difference of full pictures from the environment's own, in two episodes, and how much these move."
    simulator, env = simulated(kind, **({} if named else kwargs)), own(kind, size, **kwargs)
    largest, moved = 0, []
    for seed in (4, 0):
        simulator.reset(seed)
        env.reset(seed=seed)
        theirs = [env.render()]
        ours = [simulator.frame(View(size, "full"), named)]
        for action in script(simulator, seed):
            simulator.step(action[None])
            env.step(simulator.decode(action))
            disturb()
            ours.append(simulator.frame(View(size, "full"), named))
            env.unwrapped.mujoco_renderer.viewer.make_context_current()
            theirs.append(env.render())
        largest = max(largest, int(np.abs(np.array(ours, int) - np.array(theirs, int)).max()))
        moved.append(float(np.abs(np.array(ours[0], int) - ours[-1]).mean()))
    simulator.close()
    return largest, min(moved) > 0
"""


def run(text: str, backend: str | None = None) -> list[str]:
    """What a script prints, by lines."""
    where = {**os.environ, "MUJOCO_GL": backend or BACKENDS[0]}
    where.pop("PYOPENGL_PLATFORM", None)  # of a test that drew in this process
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", START + text], env=where, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr or "mujoco_rendering" in done.stderr, done.stderr
    return done.stdout.splitlines()


@needs_gl
@pytest.mark.parametrize("backend", BACKENDS)
def test_full_pictures_are_gymnasiums_own_to_the_bit(backend):
    """With its free cameras, those of the model, settings of the camera and flags, drawn in turns with others."""
    lines = run(
        """
other = simulated("Ant-v5")
other.reset(1)
def disturb():
    for quality in ("fast", "plain", "full"):
        other.frame(View(24, quality))
print(apart("HalfCheetah-v5", disturb=disturb))
print(apart("Reacher-v5", disturb=disturb))
print(apart("Walker2d-v5"))
print(apart("HalfCheetah-v5", camera_name="track"))
print(apart("Reacher-v5", default_camera_config={"distance": 0.8, "elevation": -60.0, "lookat": np.array([0.1, 0, 0])}))
print(apart("Ant-v5", camera_id=0, visual_options={1: True}))
print(apart("HalfCheetah-v5", named="track", camera_name="track"))
few = simulated("Reacher-v5", max_geom=500)
few.reset(0)
few.frame(View(24))
print(list(rendering._here.graphics.uploaded.values())[-1].scene.maxgeom)
""",
        backend,
    )
    assert lines == ["(0, True)"] * 7 + ["500"]


@needs_gl
def test_pictures_do_not_depend_on_what_was_drawn_before():
    """Gymnasium's camera looks at the middle of the state in which it is first asked: here always that of seed 0."""
    run(
        """
for kind in ("Reacher-v5", "HalfCheetah-v5"):
    one, other = simulated(kind), simulated(kind)
    one.reset(7)
    one.step(script(one, 7))
    one.frame(View(32))
    for each in (one, other):
        each.reset(3)
        each.step(script(each, 3))
    assert (one.frame(View(32)) == other.frame(View(32))).all()
    assert (one.frame(View(32, "full")) == other.frame(View(32, "full"))).all()
    state = one.save()
    before = one.frame(View(32))
    one.step(script(one, 4))
    assert (one.frame(View(32)) != before).any()
    one.restore(state)
    assert (one.frame(View(32)) == before).all()
"""
    )


MARKED = """
class Marked(ReacherEnv):
    "Moves what it draws before it does, as Gymnasium-Robotics' environments do, and is careless about it."
    called = 0
    def _render_callback(self):
        self.called += 1
        self.data.qpos[2:] = 0.05
        self.model.geom_rgba[:, :3] = (1, 0, 0)
        self.model.opt.timestep = 0.5
        import mujoco
        mujoco.mj_forward(self.model, self.data)
    def render(self):
        self._render_callback()
        return self.mujoco_renderer.render(self.render_mode)
"""


@needs_gl
def test_marks_are_moved_for_the_picture_alone():
    run(
        MARKED
        + """
drawn, blind = simulated(Marked), simulated(Marked)
for seed in (0, 1):
    for each in (drawn, blind):
        each.reset(seed)
    for action in script(drawn, seed):
        for each in (drawn, blind):
            each.step(action[None])
        picture = drawn.frame(View(40, "full"))
        for name in ("qpos", "qacc_warmstart", "xpos", "geom_xpos"):
            assert (getattr(drawn.env.data, name) == getattr(blind.env.data, name)).all(), name
        assert (drawn.observe() == blind.observe()).all() and drawn.total_reward == blind.total_reward
    assert drawn.env.called == 0 and drawn.env.model.opt.timestep == 0.01
    assert (drawn.env.model.geom_rgba[:, 2] > 0).any()
env = own(Marked, 40)
env.reset(seed=1)
env.model.geom_rgba[:] = drawn.env.model.geom_rgba
env.model.opt.timestep = 0.01
for action in script(drawn, 1):
    env.step(drawn.decode(action))
assert (env.render() == picture).all()
"""
    )


@needs_gl
def test_a_render_that_does_more_is_called():
    """Drawing MuJoCo's scene alone would leave out what it adds. Two of them and ours keep out of each other's way."""
    run(
        """
class Negative(HalfCheetahEnv):
    def render(self):
        return 255 - self.mujoco_renderer.render(self.render_mode)

class Around(gymnasium.Wrapper):
    def render(self):
        return self.env.render()[::-1]

class Outer(gymnasium.Env):
    "Holds another environment, and hands on its pictures."
    def __init__(self, render_mode=None, **kwargs):
        self.held, self.render_mode = ReacherEnv(render_mode=render_mode, **kwargs), render_mode
        self.observation_space, self.action_space = self.held.observation_space, self.held.action_space
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.held.reset(seed=seed)
    def step(self, action):
        return self.held.step(action)
    def render(self):
        return self.held.render()

def around(**kwargs):
    return Around(ReacherEnv(**kwargs))

size = {"width": 40, "height": 40}
kinds = (Negative, around, Outer, HalfCheetahEnv)
simulators = [simulated(kind, **size) for kind in kinds]
ours = []
for seed in (2, 5):
    for each in simulators:
        each.reset(seed)
        each.step(script(each, seed))
    ours.append([each.frame(View(40, "full")) for each in simulators])
assert [each._drawing for each in simulators] == [True, True, False, False], "whose own render() was called"
simulators[0].close()
assert (simulators[3].frame(View(40, "full")) == ours[1][3]).all(), "nothing of ours went with it"
for kind, simulator, number in zip(kinds, simulators, range(4)):
    env = own(kind, 40)
    for seed, pictures in zip((2, 5), ours):
        env.reset(seed=seed)
        for action in script(simulator, seed):
            env.step(simulator.decode(action))
        assert (env.render() == pictures[number]).all(), kind
"""
    )


@needs_gl
def test_geom_groups_are_hidden():
    lines = run(
        """
class Own(ReacherEnv):
    def render(self):
        return self.mujoco_renderer.render(self.render_mode) // 2

shown, bare, other = simulated("Reacher-v5"), simulated("Reacher-v5", hidden=(0,)), simulated("Reacher-v5", hidden=(1,))
for each in (shown, bare, other):
    each.reset(0)
assert shown.frame(View(32)).std() > 10 > bare.frame(View(32)).std()
assert (other.frame(View(32)) == shown.frame(View(32))).all()
strange = simulated(Own, hidden=(0,))
strange.reset(0)
try:
    strange.frame(View(32))
except Refusal as error:
    print(error)
"""
    )
    assert lines == [
        "'Own': its EnvSpec hides geom groups, which its own render() would draw: name cameras of its model"
    ]


class Still(Simulator):
    """Does nothing."""

    observation_size = action_size = 1

    def reset(self, seed): ...
    def save(self): ...
    def restore(self, state): ...
    def observe(self): ...
    def step(self, actions): ...
    def success(self): ...


def test_geom_groups_that_cannot_be_hidden_are_refused():
    with pytest.raises(UsageError, match=r"hidden_geom_groups \(7,\) must be numbers from 0 to 5"):
        EnvSpec("Reacher-v5", "x", 5, never, hidden_geom_groups=(7,))
    register("pictures/still", EnvSpec(make=Still, instruction="x", max_episode_steps=5, hidden_geom_groups=(0,)))
    with pytest.raises(Refusal, match="pictures/still: its EnvSpec hides geom groups, which a Still has to do itself"):
        make_simulator("pictures/still")


def test_cameras_of_the_model_are_offered_by_name():
    simulator = GymSimulator(EnvSpec("HalfCheetah-v5", "x", 5, never))
    assert simulator.cameras == ("main",) and simulator.features["observation.images.track"].shape == ()
    simulator.reset(0)
    with pytest.raises(Refusal, match="'HalfCheetah-v5' has no camera 'side': there is main, track"):
        simulator.frame(View(8), "side")


@needs_gl
def test_one_gl_context_serves_all_environments_and_what_was_drawn_longest_ago_goes_first():
    run(
        """
made, real = [], rendering._context
rendering._context = lambda: made.append(1) or real()
simulators = [simulated(kind) for kind in ("Reacher-v5", "HalfCheetah-v5", "HalfCheetah-v5", "Swimmer-v5")]
views = View(24), View(24, "plain"), View(16)
for each in simulators:
    each.reset(0)
def pictures():
    return [each.frame(view) for each in simulators for view in views]
before = pictures()
uploaded = rendering._here.graphics.uploaded
kinds = {rendering._content(each.env.unwrapped.model) for each in simulators}
assert len(made) == 1 and len(uploaded) == 3 * len(kinds) and len(kinds) == 3, "what is alike is uploaded once"
rendering.MEMORY = sum(each.nbytes for each in uploaded.values()) // 2
simulators[0].frame(View(12))
assert len(uploaded) < 3 * len(kinds)
for now, then in zip(pictures() + pictures(), before * 2):
    assert (now == then).all()
assert len(made) == 1 and sum(each.nbytes for each in uploaded.values()) <= rendering.MEMORY
for each in simulators:
    assert rendering._here.graphics is not None
    each.close()
assert rendering._here.graphics is None, "the last one takes it along"
simulators[0].reset(0)
assert (simulators[0].frame(View(24)) == before[0]).all() and len(made) == 2
"""
    )


@needs_gl
def test_threads_draw_in_contexts_of_their_own():
    run(
        """
from concurrent.futures import ThreadPoolExecutor
def picture(_):
    simulator = simulated("Reacher-v5")
    simulator.reset(0)
    return simulator.frame(View(24))
here = picture(0)
with ThreadPoolExecutor(2) as threads:
    for there in threads.map(picture, range(4)):
        assert (there == here).all()
"""
    )


BOX = """
<mujoco>
  <asset>
    <texture name="paint" type="2d" builtin="checker" rgb1="1 0 0" rgb2="0 1 0" width="16" height="16"/>
    <material name="painted" texture="paint"/>
    <mesh name="plain" vertex="{vertices}"/>
    <mesh name="laid" vertex="{vertices}" texcoord="{places}" face="{faces}"/>
  </asset>
  <worldbody>
    <geom type="mesh" mesh="plain"/><geom type="mesh" mesh="laid" material="painted" pos="0 0 1"/>
  </worldbody>
</mujoco>
"""


def test_textured_meshes_keep_their_triangles_at_fast():
    from autotelic.envs import rendering

    random = np.random.default_rng(0)
    points = random.normal(size=(60, 3))
    points *= 0.03 / np.linalg.norm(points, axis=1, keepdims=True)
    flat = lambda array: " ".join(map(str, array.reshape(-1)))  # noqa: E731
    faces = np.stack([random.permutation(60)[:3] for _ in range(80)])
    text = BOX.format(vertices=flat(points), places=flat(random.random((60, 2))), faces=flat(faces))
    model = rendering.mujoco.MjModel.from_xml_string(text)
    drawn = rendering._drawn(model, 32, "fast")
    assert drawn.mesh_facenum[0] < model.mesh_facenum[0] / 2, "it has no texture"
    assert drawn.mesh_facenum[1] == model.mesh_facenum[1]
    np.testing.assert_array_equal(drawn.mesh_face[-80:], model.mesh_face[-80:])


@needs_gl
def test_a_pool_draws_several_kinds_in_turns(monkeypatch):
    """Also where episodes have instances of their own."""
    monkeypatch.setenv("MUJOCO_GL", BACKENDS[0])
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl" if BACKENDS[0] == "osmesa" else "osmesa")  # drawn here by another
    names = [f"pictures/{kind}" for kind in ("Reacher-v5", "HalfCheetah-v5")]
    for name in names:
        register(name, EnvSpec(name.rpartition("/")[2], "x", 9, never, chunk=3))
    with Pool(names, workers=1, chunk=3) as pool:
        requests = [EpisodeRequest(name, seed, 9) for seed in (0, 1) for name in names]
        sizes = [pool.sizes(name)[1] for name in names]
        assert sizes == [2, 6]
        for episodes in (
            pool.run([request], lambda rows, seen, size=size: np.full((len(rows), 3, size), 0.7), render=View(24))
            for request, size in zip(requests, sizes * 2, strict=True)
        ):
            assert episodes[0].frames.shape == (4, 24, 24, 3)
            assert all((a != b).any() for a, b in zip(episodes[0].frames[1:], episodes[0].frames, strict=False))


ROBOTS = "FetchReach-v4", "HandManipulateBlock-v1", "AdroitHandDoor-v1", "PointMaze_UMaze-v3", "AntMaze_UMaze-v5"


@needs_gl
@pytest.mark.parametrize("kind", ROBOTS)
def test_full_pictures_are_gymnasium_robotics_own(kind):
    """Beside an environment that is drawn once only: its own pictures move Fetch's solver, and with it what follows."""
    pytest.importorskip("gymnasium_robotics")
    run(
        f"""
import gymnasium_robotics
gymnasium.register_envs(gymnasium_robotics)
simulator = simulated({kind!r})
simulator.reset(4)
steps = script(simulator, 4, 4)
for count, action in enumerate(steps, 1):
    simulator.step(action[None])
    ours = simulator.frame(View(40, "full"))
    env = gymnasium.make({kind!r}, render_mode="rgb_array", width=40, height=40, disable_env_checker=True).unwrapped
    kept.append(env)
    if {kind!r} not in ("FetchReach-v4", "HandManipulateBlock-v1"):  # which say where their cameras look
        env.reset(seed=0)
        env.render()
    env.reset(seed=4)
    for done in steps[:count]:
        env.step(simulator.decode(done))
    if count in (1, 4):
        assert (env.render() == ours).all()
assert not simulator._drawing
"""
    )


def test_scenes_are_found_where_environments_keep_them():
    from types import SimpleNamespace

    from autotelic.envs.gym_pictures import cameras_of, own_of, scene_of
    from autotelic.envs.rendering import mujoco

    text = '<mujoco><worldbody><camera name="a/b"/><camera/></worldbody></mujoco>'
    model = mujoco.MjModel.from_xml_string(text)
    data = mujoco.MjData(model)
    shapes = {
        "gym_hil": SimpleNamespace(_model=model, _data=data),
        "robosuite": SimpleNamespace(
            sim=SimpleNamespace(model=SimpleNamespace(_model=model), data=SimpleNamespace(_data=data))
        ),
        "dm_control": SimpleNamespace(
            physics=SimpleNamespace(model=SimpleNamespace(ptr=model), data=SimpleNamespace(ptr=data))
        ),
    }
    for name, env in {**shapes, "aloha": SimpleNamespace(_env=shapes["dm_control"])}.items():
        assert scene_of(env) == (model, data) and own_of(env) is None, name
        assert cameras_of(env) == {"a.b": "a/b"}, "LeRobot forbids the stroke"
    assert scene_of(SimpleNamespace(model=1, data=2)) is None and cameras_of(SimpleNamespace()) == {}
    assert Path(mujoco.__file__).exists()
