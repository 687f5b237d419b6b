"""Gymnasium-Robotics 1.4: Fetch, Shadow Hand, Adroit, Franka Kitchen and mazes (the extra "robotics").

Success is what the environment itself says in its info; in Fetch and Hand at the end of an episode, as
Plappert et al., arXiv:1802.09464, judge it. Where an observation is a dictionary of goals, "object" (what is achieved)
and "goal" (what is desired) of the layout come from its space, and only Fetch's hand is told here: in a maze the walls
matter, and a view relative to a hand would hide where it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..simulator import ACTION, DRAWN, IMAGES, STATE, EnvSpec, Feature, Outcome, register
from .criteria import Told

EXTRA = "robotics"
CITATION = "Gymnasium-Robotics: de Lazcano et al., github.com/Farama-Foundation/Gymnasium-Robotics"

ACHIEVED, DESIRED, GRIPPER = slice(0, 3), slice(3, 6), slice(6, 9)
"""Of Fetch's observations, flattened: positions of what is moved, of where to, and of the gripper, in metres."""

GAIN = 20.0
"""Of Fetch's actions per metre: 1 moves by 5 cm."""

OVER, NEAR, HELD = 0.06, 0.015, 0.026
"""Metres: above an object before it is grasped; what counts as there; fingers around the cube, each."""


def reach(env: Any, observation: NDArray[np.float32]) -> NDArray[np.float32]:
    """FetchReach: straight to the goal."""
    return np.append(GAIN / 2 * (observation[DESIRED] - observation[GRIPPER]), 0).clip(-1, 1)


def pick_and_place(env: Any, observation: NDArray[np.float32]) -> NDArray[np.float32]:
    """FetchPickAndPlace: over the cube, down, close, and to the goal."""
    hand, cube, goal = observation[GRIPPER], observation[ACHIEVED], observation[DESIRED]
    away, fingers = cube - hand, observation[15:17].mean()
    around = bool(np.linalg.norm(away) < NEAR)
    if around and fingers < HELD:
        return np.append(GAIN / 2 * (goal - cube), -1).clip(-1, 1)
    if around:
        return np.array([0, 0, 0, -1])
    beside = bool(np.linalg.norm(away[:2]) < NEAR / 2)
    return np.append(GAIN / 2 * (away if beside else away + np.array([0, 0, OVER])), 1).clip(-1, 1)


def in_hand(id: str, **given: Any) -> Any:
    """A HandManipulate environment whose reset leaves nothing behind.

    Its own leaves the last controls in place, and starts then differ by up to 1e-7.
    """
    import gymnasium

    class Fresh(gymnasium.Wrapper[Any, Any, Any, Any]):
        def reset(self, **given: Any) -> Any:
            self.unwrapped.data.ctrl[:] = 0  # type: ignore[attr-defined]
            return self.env.reset(**given)

    return Fresh(gymnasium.make(f"gymnasium_robotics:{id}", disable_env_checker=True, **given).unwrapped)


def completed(outcome: Outcome) -> bool:
    """Every task of the kitchen was done at some time, which ends the episode."""
    return outcome.terminated


SAID, SOLVED = Told("is_success"), Told("success")


def add(name: str, instruction: str, sizes: tuple[int, int], steps: int, fps: int, felt: slice, **changes: Any) -> None:
    """Register one environment; all actions are bounded by 1."""
    seen, done = sizes
    spec = EnvSpec(
        id=f"gymnasium_robotics:{name}",
        instruction=instruction,
        max_episode_steps=steps,
        success=SAID,
        features={STATE: Feature((seen,)), IMAGES + DRAWN: Feature(), ACTION: Feature((done,), -1, 1)},
        fps=fps,
        chunk=1,
        title=name,
        citation=CITATION,
        proprioception=felt,
        extra=EXTRA,
    )
    register(f"robotics/{name}", replace(spec, **changes))


HAND = {"hand": GRIPPER}
FETCH: dict[str, tuple[str, int, Any]] = {
    "FetchReach": ("move the gripper to the goal", 16, reach),
    "FetchPush": ("push the cube to the goal", 31, None),
    "FetchSlide": ("hit the puck so that it slides to the goal", 31, None),
    "FetchPickAndPlace": ("pick up the cube and bring it to the goal", 31, pick_and_place),
}
for _name, (_told, _size, _expert) in FETCH.items():
    _felt = slice(6, 16) if _size == 16 else GRIPPER
    for _id in (f"{_name}-v4", f"{_name}Dense-v4"):
        add(_id, _told, (_size, 4), 50, 25, _felt, layout=HAND, expert=_expert, latched=False)

add("HandReach-v3", "move the fingertips to the goals", (93, 20), 50, 25, slice(30, 78), latched=False)
HELD_BY_HAND = {
    "HandManipulateBlock-v1": "turn the block in the hand to the goal",
    "HandManipulateBlockRotateZ-v1": "turn the block in the hand around its vertical axis to the goal",
    "HandManipulateBlockRotateXYZ-v1": "turn the block in the hand around any axis to the goal",
    "HandManipulateEgg-v1": "turn the egg in the hand to the goal",
    "HandManipulatePen-v1": "turn the pen in the hand to the goal",
}
for _name, _told in HELD_BY_HAND.items():
    _made: dict[str, Any] = {"id": "", "make": in_hand, "kwargs": {"id": _name}}
    add(_name, _told, (75, 20), 100, 25, slice(14, 62), latched=False, **_made)

DOOR = {"hand": slice(29, 32), "object": slice(32, 35)}
HAMMER = {"hand": slice(33, 36), "object": slice(36, 39), "goal": slice(42, 45)}
add("AdroitHandDoor-v1", "open the door", (39, 28), 200, 100, slice(0, 27), success=SOLVED, layout=DOOR)
add(
    "AdroitHandHammer-v1",
    "hammer the nail into the board",
    (46, 26),
    200,
    100,
    slice(0, 27),
    success=SOLVED,
    layout=HAMMER,
)
add("AdroitHandPen-v1", "turn the pen in the hand to the goal", (45, 24), 200, 100, slice(0, 24), success=SOLVED)
add("AdroitHandRelocate-v1", "bring the ball to the goal", (39, 30), 200, 100, slice(0, 30), success=SOLVED)

add(
    "FrankaKitchen-v1", "open the microwave, the cabinets, move the kettle, turn on the light and the burners", (93, 9),
    280, 12, slice(34, 52), chunk=8, success=completed,  # chunks as Diffusion Policy's
)  # fmt: skip

MAZES = {"Open": 300, "UMaze": 300, "Medium": 600, "Large": 800}
for _name, _steps in MAZES.items():
    for _id in (f"PointMaze_{_name}-v3", f"PointMaze_{_name}Dense-v3"):
        add(_id, "roll the ball to the goal", (8, 2), _steps, 50, slice(4, 8), success=SOLVED)
for _name, _steps in {"Open": 700, "UMaze": 700, "Medium": 1000, "Large": 1000}.items():
    add(f"AntMaze_{_name}-v5", "walk on four legs to the goal", (109, 8), _steps, 50, slice(4, 109), success=SOLVED)
