"""Pictures of a MuJoCo scene, fast and without a display.

Four settings decide the speed on a CPU: multisampling, the shadow map, the mirror pass of the floor,
and the number of mesh triangles. The first three are off here; none of them touches the physics.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .physics import mujoco
from .simulator import RenderingUnavailable as RenderingUnavailable


def _context(size: int) -> Any:
    """A GL context of the backend that MUJOCO_GL names; without it OSMesa on headless Linux, else GLFW."""
    headless = sys.platform == "linux" and not os.environ.get("DISPLAY")
    backend = os.environ.get("MUJOCO_GL", "").lower() or ("osmesa" if headless else "glfw")
    try:
        return importlib.import_module(f"mujoco.{backend}").GLContext(size, size)
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        package = {"osmesa": "libosmesa6", "egl": "libegl1"}.get(backend, "libgl1")
        raise RenderingUnavailable(
            f"cannot render with MUJOCO_GL={backend} ({error}): install the Debian package {package}, "
            "or set MUJOCO_GL to osmesa or egl"
        ) from error


class Renderer:
    """Square RGB pictures from one fixed camera.

    Args:
        model: its visual quality settings are lowered; physics does not read them.
        size: pixels along a side.
        camera: where to look from.
    """

    def __init__(self, model: mujoco.MjModel, size: int, camera: mujoco.MjvCamera) -> None:
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self.model, self.size, self.camera = model, size, camera
        self.gl = _context(size)
        self.gl.make_current()
        self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        self.scene = mujoco.MjvScene(model, maxgeom=1000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.scene.flags[flag] = 0
        self.options = mujoco.MjvOption()
        self.perturbation = mujoco.MjvPerturb()

    def draw(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """[size, size, 3] of a state whose positions are up to date (``mj_forward`` was called)."""
        self.gl.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self.model, data, self.options, self.perturbation, self.camera, everything, self.scene)
        view = mujoco.MjrRect(0, 0, self.size, self.size)
        mujoco.mjr_render(view, self.scene, self.context)
        picture = np.empty((self.size, self.size, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, view, self.context)
        return np.ascontiguousarray(picture[::-1])

    def close(self) -> None:
        """Free the GL context."""
        self.context.free()
        self.gl.free()
