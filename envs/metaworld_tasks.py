"""The 50 MetaWorld v3 tasks by name, with the sentence that a policy is told, and their specs "metaworld/<task>".

Imports no simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .simulator import ACTION, IMAGES, SHOULDER, STATE, EnvSpec, Feature, register

OBSERVATION: dict[str, slice] = {
    "hand": slice(0, 3),
    "gripper": slice(3, 4),
    "object": slice(4, 7),
    "object_rotation": slice(7, 11),
    "second": slice(11, 14),
    "second_rotation": slice(14, 18),
    "goal": slice(18, 21),
}
"""Where things stand in an observation [21]: positions in metres, rotations as quaternions, gripper opening in
0..1 (0 closed). Absent objects are zeros."""

PROPRIOCEPTION = slice(0, 4)
"""Hand and gripper: what the robot feels of itself."""

TASKS: dict[str, str] = {
    "assembly-v3": "put the ring over the peg",
    "basketball-v3": "drop the ball through the basketball hoop",
    "bin-picking-v3": "move the block from one bin to the other",
    "box-close-v3": "put the lid on the box",
    "button-press-topdown-v3": "press the button down from above",
    "button-press-topdown-wall-v3": "press the button behind the wall down from above",
    "button-press-v3": "push the button in",
    "button-press-wall-v3": "reach around the wall and push the button in",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial by half a turn",
    "disassemble-v3": "lift the ring off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door by turning its lock",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door by turning its lock back",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "turn the faucet off",
    "faucet-open-v3": "turn the faucet on",
    "hammer-v3": "hammer the nail into the board",
    "hand-insert-v3": "put the gripper into the hole",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up from the side",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "peg-insert-side-v3": "insert the peg into the hole from the side",
    "peg-unplug-side-v3": "pull the peg out of the hole sideways",
    "pick-out-of-hole-v3": "take the puck out of the hole",
    "pick-place-v3": "pick up the puck and bring it to the goal",
    "pick-place-wall-v3": "lift the puck over the wall and bring it to the goal",
    "plate-slide-back-side-v3": "pull the plate out of the cabinet sideways",
    "plate-slide-back-v3": "pull the plate out of the cabinet",
    "plate-slide-side-v3": "slide the plate sideways into the cabinet",
    "plate-slide-v3": "slide the plate into the cabinet",
    "push-back-v3": "pull the puck back to the goal",
    "push-v3": "push the puck to the goal",
    "push-wall-v3": "push the puck around the wall to the goal",
    "reach-v3": "move the gripper to the goal",
    "reach-wall-v3": "move the gripper over the wall to the goal",
    "shelf-place-v3": "put the puck on the shelf",
    "soccer-v3": "push the ball into the soccer goal",
    "stick-pull-v3": "pull the thermos with the stick",
    "stick-push-v3": "push the thermos with the stick",
    "sweep-into-v3": "sweep the puck into the hole",
    "sweep-v3": "sweep the puck off the table",
    "window-close-v3": "slide the window shut",
    "window-open-v3": "slide the window open",
}


def simulator(task: str) -> Any:
    """The physics instance of a task."""
    from .metaworld import MetaWorldSimulator

    return MetaWorldSimulator(task)


def practice(
    environment: str, seed: int, steps: int, chunk: int
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """A scripted expert gone astray, for one episode."""
    from .metaworld_practice import Astray

    return Astray(environment.rpartition("/")[2], seed, steps, chunk)


FEATURES = {STATE: Feature((21,)), IMAGES + SHOULDER: Feature(), ACTION: Feature((4,), -1, 1)}

for _task, _instruction in TASKS.items():
    register(
        f"metaworld/{_task}",
        EnvSpec(
            make=simulator,
            kwargs={"task": _task},
            instruction=_instruction,
            max_episode_steps=150,  # MetaWorld's own limit is 500; its experts are done within these
            features=FEATURES,
            fps=80,  # 5 substeps of 2.5 ms
            title=_task,
            citation="MetaWorld: Yu et al., arXiv:1910.10897",
            layout=OBSERVATION,
            proprioception=PROPRIOCEPTION,
            practice=practice,
        ),
    )
