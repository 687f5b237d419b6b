"""gym-aloha: two arms of six joints and a gripper each, seen from above (the extra "aloha"). It has no expert.

Observations hold a picture, so it needs EGL or OSMesa even for a policy on states, and those are the joints alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ...gl import before_gl
from ..simulator import ACTION, IMAGES, STATE, EnvSpec, Feature, register
from .criteria import Told

TASKS = {
    "TransferCube": "pick up the cube with the right arm and hand it to the left",
    "Insertion": "pick up socket and peg and put the peg into the socket",
}


def table(id: str, **given: Any) -> Any:
    """An environment that draws by whichever GL library works here: dm_control takes one when it is imported."""
    import gymnasium

    from ..rendering import settle_backend

    before_gl()
    settle_backend()
    env = gymnasium.make(f"gym_aloha:gym_aloha/{id}", disable_env_checker=True, max_episode_steps=-1, **given).unwrapped
    physics = env._env.physics  # type: ignore[attr-defined]
    physics.render = partial(top_alone, physics.render)
    return env


def top_alone(draw: Callable[..., Any], *, camera_id: str, **size: int) -> Any:
    """The picture from above, which is all that is observed of the three that are drawn at every step."""
    return draw(camera_id=camera_id, **size) if camera_id == "top" else None


for _name, _told in TASKS.items():
    register(
        f"aloha/{_name}",
        EnvSpec(
            make=table,
            kwargs={"id": f"Aloha{_name}-v0", "obs_type": "pixels_agent_pos"},
            instruction=_told,
            max_episode_steps=300,
            success=Told("is_success"),  # the highest of the four stages that its reward counts
            features={STATE: Feature((14,)), IMAGES + "top": Feature((480, 640, 3)), ACTION: Feature((14,), -1, 1)},
            fps=50,
            chunk=100,  # ACT's
            title=f"Aloha{_name}",
            citation="ACT: Zhao et al., arXiv:2304.13705",
            proprioception=slice(0, 14),
            timeout=300,  # each step draws several pictures
            extra="aloha",
        ),
    )
