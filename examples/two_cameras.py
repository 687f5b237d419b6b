"""An arm with two cameras, 7 actions at 20 Hz and chunks of 8, as LIBERO's: a simulator of one's own, joined by a spec.

autotelic run vla/evolve_vla --use examples/two_cameras.py --tasks arm --obs-type pixels
"""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from autotelic.envs.simulator import EnvSpec, Feature, register


def picture(place: float, colour: int) -> np.ndarray:
    """[64, 64, 3] a bar where something is."""
    pixels = np.full((64, 64, 3), 40, np.uint8)
    column = int(np.clip(32 + 24 * place, 4, 59))
    pixels[:, column - 4 : column + 5, colour] = 255
    return pixels


class Arm(gymnasium.Env):
    """A hand that is to go to a cup. From aside one sees how far away the cup is, from the hand how high."""

    pixels = Box(0, 255, (64, 64, 3), np.uint8)
    state = Box(-9, 9, (8,), np.float32)
    observation_space = Dict({"state": state, "agentview_image": pixels, "eye_in_hand_image": pixels})
    action_space = Box(-0.1, 0.1, (7,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.joints, self.cup = np.zeros(8, np.float32), self.np_random.uniform(-1, 1, 2)
        return self.look(), {"apart": 1.0}

    def step(self, action):
        self.joints[:7] += action
        return self.look(), 0.0, False, False, {"apart": float(np.abs(self.cup - self.joints[:2]).max())}

    def look(self):
        away, high = self.cup - self.joints[:2]
        return {"state": self.joints.copy(), "agentview_image": picture(away, 0), "eye_in_hand_image": picture(high, 1)}


def there(outcome):  # the oracle: read by evaluation only
    return outcome.info["apart"] < 0.15


def reach(env, observation):  # a scripted expert, who shows how: actions in [-1, 1]
    return np.concatenate([10 * (env.cup - observation[:2]), np.zeros(5)])


features = {
    "observation.state": Feature((8,)),
    "observation.images.agentview_image": Feature((64, 64, 3)),
    "observation.images.eye_in_hand_image": Feature((64, 64, 3)),
    "action": Feature((7,), low=-0.1, high=0.1),
}
feels = {"proprioception": slice(0, 8), "layout": {"hand": slice(0, 2)}}
register("arm", EnvSpec(make=Arm, instruction="reach the cup", max_episode_steps=40, success=there, expert=reach,
                        features=features, fps=20, chunk=8, **feels))  # fmt: skip
