"""MuJoCo, imported without a GL library.

MuJoCo loads the library that ``MUJOCO_GL`` names while it is imported, and fails where there is none.
Imported through here, it loads none, so runs on states need none; :mod:`.rendering` loads one when a
picture is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_gl() -> Iterator[None]:
    """What is imported in here loads no GL library."""
    wanted = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        yield
    finally:
        if wanted is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = wanted


with without_gl():
    import mujoco as mujoco  # type: ignore[import-untyped]
