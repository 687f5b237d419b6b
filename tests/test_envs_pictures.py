"""Pictures and videos; skipped on machines without GL."""

from __future__ import annotations

import importlib
import os
import sys
from ctypes.util import find_library
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from autotelic.envs import rendering
from autotelic.envs.pool import EpisodeRequest, Pool
from autotelic.envs.simulator import EnvSpec, Outcome, RenderingUnavailable, View, register
from autotelic.envs.video import write_side_by_side

DRAWER = "metaworld/drawer-open-v3"


def act(rows, observations):
    return np.tile(np.array([0, 0, 1, 0], np.float32), (len(rows), 5, 1))


def never(outcome: Outcome) -> bool:
    return False


def right(rows, observations):
    return np.tile(np.array([0, 1], np.float32), (len(rows), 5, 1))


@pytest.mark.skipif(find_library("OSMesa") is None, reason="libosmesa6 is not installed")
def test_pictures_come_from_another_process_and_change_nothing():
    request = [EpisodeRequest(DRAWER, 0, 30)] * 2
    with Pool([DRAWER], workers=0) as pool:
        plain = pool.run(request, act)
        drawn = pool.run(request, act, render=View(64))
    for a, b in zip(plain, drawn, strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)
        assert len(b.frames) == len(b.observations)
        assert all(frame.shape == (64, 64, 3) and frame.dtype == np.uint8 for frame in b.frames)
    frames = drawn[0].frames
    assert np.ptp(frames[0]) > 100, "something is seen"
    np.testing.assert_array_equal(frames[0], drawn[1].frames[0])
    # The arm is the only strongly red thing; lifting the hand must move its lowest point up the picture.
    lowest = [np.flatnonzero((frame[..., 0] > 2.0 * frame[..., 2] + 40).any(1)).max() for frame in frames]
    assert lowest[-1] < lowest[0]


def test_gymnasium_pictures():
    pytest.importorskip("pygame")
    register("pole-seen", EnvSpec(id="CartPole-v1", instruction="balance", max_episode_steps=50, success=never))
    with Pool(["pole-seen"], workers=1) as pool:
        requests = [EpisodeRequest("pole-seen", seed, 20) for seed in (0, 1)]
        plain = pool.run(requests, right)
        drawn = pool.run(requests, right, render=View(48))
    np.testing.assert_array_equal(plain[1].observations, drawn[1].observations)
    assert drawn[1].frames[0].shape == (48, 48, 3)
    assert not np.array_equal(drawn[0].frames[0], drawn[0].frames[-1])


def test_without_gl_the_package_to_install_is_named(monkeypatch):
    def missing(name):
        raise ImportError("no library")

    monkeypatch.setattr(importlib, "import_module", missing)
    for backend, package in (("osmesa", "libosmesa6"), ("egl", "libegl1")):
        monkeypatch.setenv("MUJOCO_GL", backend)
        with pytest.raises(RenderingUnavailable, match=f"MUJOCO_GL={backend}.*{package}"):
            rendering._context()


def test_the_next_library_is_tried_where_nobody_has_said_which(monkeypatch):
    tried = []

    class Works:
        def __init__(self, *size):
            assert os.environ["PYOPENGL_PLATFORM"] == "osmesa", "what the first one left is gone"

        def free(self):
            tried.append("freed")

    def found(name):
        tried.append(name)
        if name == "mujoco.egl":
            monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
            raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")
        return SimpleNamespace(GLContext=Works)

    for name in ("DISPLAY", "PYOPENGL_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(importlib, "import_module", found)
    monkeypatch.setattr(rendering, "_try", lambda context: None)
    rendering.settle_backend()
    assert tried == ["mujoco.egl", "mujoco.osmesa", "freed"] and os.environ["MUJOCO_GL"] == "osmesa"
    rendering.settle_backend()
    assert len(tried) == 3, "it is settled"
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(RenderingUnavailable, match=r"MUJOCO_GL=egl \(AttributeError.*libegl1"):
        rendering._context()


def test_a_refusal_of_a_worker_reaches_the_caller(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with Pool([DRAWER], workers=1) as pool:
        with pytest.raises(RenderingUnavailable, match="MUJOCO_GL=nonsense"):
            pool.run([EpisodeRequest(DRAWER, 0, 5)], act, render=View(32))
        assert pool.run([EpisodeRequest(DRAWER, 0, 5)], act)[0].steps == 5


def test_side_by_side(tmp_path):
    left = [np.full((32, 32, 3), value, np.uint8) for value in (0, 60, 120)]
    right = [np.full((32, 32, 3), value, np.uint8) for value in (200, 250)]
    path = write_side_by_side(tmp_path / "video", left, right, ("before", "after"))
    assert path == tmp_path / "video.webp"
    with Image.open(path) as video:
        assert video.n_frames == 3 and video.size == (260, 144)  # enlarged, so that labels can be read
        video.seek(2)
        last = np.asarray(video.convert("RGB"))
    assert abs(int(last[80, 40, 0]) - 120) < 12 and abs(int(last[80, 200, 0]) - 250) < 12
    with pytest.raises(ValueError, match="0 and 2 frames"):
        write_side_by_side(tmp_path / "video", [], right, ("before", "after"))
    large = [np.full((160, 200, 3), 90, np.uint8)]
    with Image.open(write_side_by_side(tmp_path / "uneven", left, large, ("before", "after"))) as video:
        assert video.size == (160 + 4 + 200, 176)
