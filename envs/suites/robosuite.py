"""robosuite 1.5.1: tasks of one Panda arm at a table (the extra "robosuite"). It has no expert here.

An arm is moved by robosuite's default controller, the pose of its end effector at 20 Hz. robosuite draws initial states
from NumPy's global generator, which is seeded with each episode. A reset keeps the model, as LIBERO does. There are no
pictures.
"""

from __future__ import annotations

from typing import Any

from ..simulator import ACTION, STATE, EnvSpec, Feature, register
from .criteria import Told


def table(task: str) -> Any:
    """A task as a Gymnasium environment that says in its info whether it is solved."""
    import logging

    import numpy as np

    logging.disable(logging.WARNING)  # it tells at its import what else could be installed
    try:
        import robosuite
        from robosuite.wrappers import GymWrapper
    finally:
        logging.disable(logging.NOTSET)

    class Table(GymWrapper):  # type: ignore[misc]
        metadata: dict[str, Any] = {}  # noqa: RUF012

        def _flatten_obs(self, *given: Any) -> Any:
            return super()._flatten_obs(*given).astype(np.float32)

        def step(self, action: Any) -> Any:
            *seen, info = super().step(action)
            return (*seen, {**info, "success": bool(self.env._check_success())})

    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    blind = {"has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False}
    return Table(robosuite.make(task, robots="Panda", control_freq=20, ignore_done=True, hard_reset=False, **blind))


FELT = 43
"""Numbers at the end of an observation that the arm feels of itself; its end effector's place begins at 28 of them."""

CUBE = {"object": slice(0, 3), "object_rotation": slice(3, 7)}
TASKS = {
    "Lift": ("lift the cube", 10, CUBE),
    "Stack": ("put the red cube on the green one", 23, {**CUBE, "goal": slice(7, 10)}),
    "Door": ("open the door", 14, {"object": slice(3, 6)}),
    "NutAssemblySquare": ("put the square nut on the square peg", 14, CUBE),
    "PickPlaceCan": ("put the can into its bin", 14, CUBE),
}
"""Instruction, numbers that tell of objects, and where things stand in these."""

for _name, (_told, _objects, _places) in TASKS.items():
    register(
        f"robosuite/{_name}",
        EnvSpec(
            make=table,
            kwargs={"task": _name},
            instruction=_told,
            max_episode_steps=500,  # within which demonstrations of robomimic end
            success=Told("success"),
            features={STATE: Feature((_objects + FELT,)), ACTION: Feature((7,), -1, 1)},
            fps=20,
            chunk=8,  # Diffusion Policy's
            title=_name,
            citation="robosuite: Zhu et al., arXiv:2009.12293",
            layout={"hand": slice(_objects + 28, _objects + 31), **_places},
            proprioception=slice(_objects, _objects + FELT),
            extra="robosuite",
        ),
    )
