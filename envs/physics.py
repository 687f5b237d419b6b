"""MuJoCo and MetaWorld, imported without a GL library.

MuJoCo loads the library that ``MUJOCO_GL`` names while it is imported, and fails where there is none.
Imported through here, it loads none, so runs on states need none; :mod:`.rendering` loads one when a
picture is asked for.
"""

from __future__ import annotations

import os

_wanted = os.environ.get("MUJOCO_GL")
os.environ["MUJOCO_GL"] = "disable"

import mujoco as mujoco  # type: ignore[import-untyped]  # noqa: E402
from metaworld.env_dict import ENV_CLS_MAP as ENV_CLS_MAP  # noqa: E402
from metaworld.policies import ENV_POLICY_MAP as ENV_POLICY_MAP  # noqa: E402

if _wanted is None:
    del os.environ["MUJOCO_GL"]
else:
    os.environ["MUJOCO_GL"] = _wanted
