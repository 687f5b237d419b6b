"""MiniGrid and BabyAI, where the mission of an episode is its instruction (the extra "minigrid").

An observation [984] is the part of the grid that is seen, one-hot by object, colour and state (7 x 7 x 20), and the
direction (4), through MiniGrid's own wrapper. The mission is no part of it: a policy is told it as its instruction.
"""

from __future__ import annotations

import functools
from contextlib import redirect_stdout
from io import StringIO
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..simulator import ACTION, DRAWN, IMAGES, STATE, EnvSpec, Feature, needing, register
from .criteria import earned

EXTRA = "minigrid"
BABYAI = "BabyAI: Chevalier-Boisvert et al., arXiv:1810.08272"
MINIGRID = "MiniGrid: Chevalier-Boisvert et al., arXiv:2306.13831"


def level(id: str, render_mode: str | None = None) -> Any:
    """An environment with numbers for observations; drawing new missions, it says nothing on standard output."""
    import gymnasium
    import minigrid.wrappers

    class Quiet(gymnasium.Wrapper[Any, Any, Any, Any]):
        def reset(self, **given: Any) -> Any:
            with redirect_stdout(StringIO()):
                return self.env.reset(**given)

    bare = gymnasium.make(id, disable_env_checker=True, render_mode=render_mode).unwrapped
    seen = gymnasium.wrappers.FilterObservation(minigrid.wrappers.OneHotPartialObsWrapper(bare), ["image", "direction"])
    return Quiet(gymnasium.wrappers.FlattenObservation(seen))


@functools.cache
def _told_by(id: str) -> Any:
    with needing(id, EXTRA):
        return level(id)


@functools.lru_cache(maxsize=10_000)  # a long run has a seed per task and round
def mission(id: str, seed: int) -> str:
    """What an episode asks for.

    Raises:
        Refusal: MiniGrid is not installed.
    """
    env = _told_by(id)
    env.reset(seed=seed)
    return str(env.unwrapped.mission)


_bots: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""Environment -> the bot of its present episode: no part of its state."""


def bot(env: Any, observation: NDArray[np.float32]) -> NDArray[np.float32]:
    """BabyAI's own bot, which looks into the level and plans."""
    from minigrid.utils.baby_ai_bot import BabyAIBot

    bare = env.unwrapped
    if bare.step_count == 0 or bare not in _bots:
        _bots[bare] = BabyAIBot(env)
    chosen = np.full(len(bare.actions), -1, np.float32)
    chosen[int(_bots[bare].replan())] = 1
    return chosen


LEVELS = {
    "GoToRedBallGrey": ("go to the red ball", 64),
    "GoToRedBall": ("go to the red ball", 64),
    "GoToObj": ("go to the object", 64),
    "GoToLocal": ("go to the object", 64),
    "PutNextLocal": ("put one object next to another", 128),
    "PickupLoc": ("pick up the object", 64),
    "GoToObjMaze": ("find the object and go to it", 576),
    "GoTo": ("find the object and go to it", 576),
    "Pickup": ("find the object and pick it up", 576),
    "UnblockPickup": ("clear the way to the object and pick it up", 576),
    "Open": ("find the door and open it", 576),
    "Unlock": ("find the key and open the door", 576),
    "PutNextS5N2": ("put one object next to another", 200),
    "PutNextS7N4": ("put one object next to another", 392),
    "Synth": ("do as told", 1152),
    "SynthLoc": ("do as told", 1152),
    "GoToSeq": ("go to the objects as told", 2304),
    "SynthSeq": ("do as told, one after the other", 2880),
    "GoToImpUnlock": ("unlock the way to the object and go to it", 576),
    "BossLevel": ("do as told, one after the other", 2880),
}
"""BabyAI's levels: what their missions have in common, and the most steps that one grants (an episode ends by its own
mission's number)."""

ROOMS = {
    "Empty-5x5": ("get to the green goal square", 100),
    "Empty-8x8": ("get to the green goal square", 256),
    "DoorKey-5x5": ("use the key to open the door and then get to the goal", 250),
    "DoorKey-8x8": ("use the key to open the door and then get to the goal", 640),
    "FourRooms": ("reach the goal", 100),
    "LavaGapS7": ("avoid the lava and get to the green goal square", 196),
    "SimpleCrossingS9N1": ("find the opening and get to the green goal square", 324),
    "KeyCorridorS3R3": ("pick up the ball", 270),
    "GoToDoor-5x5": ("go to the door", 100),
    "Fetch-5x5-N2": ("fetch the object", 125),
    "MultiRoom-N2-S4": ("traverse the rooms to get to the goal", 40),
    "Unlock": ("open the door", 288),
}
"""The same for MiniGrid's environments."""

SUITES = (("babyai", "BabyAI", LEVELS, BABYAI), ("minigrid", "MiniGrid", ROOMS, MINIGRID))

for _suite, _family, _names, _citation in SUITES:
    for _name, (_common, _steps) in _names.items():
        _id = f"{_family}-{_name}-v0"
        register(
            f"{_suite}/{_name}",
            EnvSpec(
                make=level,
                kwargs={"id": _id},
                instruction=_common,
                instruct=functools.partial(mission, _id),
                max_episode_steps=_steps,
                success=earned,
                features={STATE: Feature((984,)), IMAGES + DRAWN: Feature(), ACTION: Feature((7,))},
                fps=10,
                chunk=1,
                title=f"{_family}-{_name}",
                citation=_citation,
                expert=bot if _suite == "babyai" else None,
                extra=EXTRA,
            ),
        )
