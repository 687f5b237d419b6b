"""gym-aloha: two arms of six joints and a gripper each, seen from above (the extra "aloha"). It has no expert.

Observations hold a picture, so it needs EGL or OSMesa even for a policy on states, and those are the joints alone.
"""

from __future__ import annotations

from ..simulator import ACTION, IMAGES, STATE, EnvSpec, Feature, register
from .criteria import Told

TASKS = {
    "TransferCube": "pick up the cube with the right arm and hand it to the left",
    "Insertion": "pick up socket and peg and put the peg into the socket",
}

for _name, _told in TASKS.items():
    register(
        f"aloha/{_name}",
        EnvSpec(
            id=f"gym_aloha:gym_aloha/Aloha{_name}-v0",
            instruction=_told,
            max_episode_steps=300,
            success=Told("is_success"),  # the highest of the four stages that its reward counts
            kwargs={"obs_type": "pixels_agent_pos"},
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
