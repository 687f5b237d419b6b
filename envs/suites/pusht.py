"""gym-pusht: the T that a disc pushes onto its mark (the extra "pusht"). It has no expert.

There is no layout: positions are pixels of a board of 512, and relations are of metres.
"""

from __future__ import annotations

from ..simulator import ACTION, DRAWN, IMAGES, STATE, EnvSpec, Feature, register
from .criteria import Told

register(
    "pusht/PushT",
    EnvSpec(
        id="gym_pusht:gym_pusht/PushT-v0",
        instruction="push the T onto its mark",
        max_episode_steps=300,
        success=Told("is_success"),  # at least 95 % of the mark are covered
        features={STATE: Feature((5,)), IMAGES + DRAWN: Feature(), ACTION: Feature((2,), 0, 512)},
        fps=10,
        chunk=8,  # Diffusion Policy's
        title="PushT",
        citation="Diffusion Policy: Chi et al., arXiv:2303.04137",
        proprioception=slice(0, 2),
        extra="pusht",
    ),
)
