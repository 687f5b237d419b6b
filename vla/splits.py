"""What episodes begin with, compared by content: no state is learned from, or shown, and evaluated.

Seeds of different splits are different numbers, which says nothing of the states that they lead to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..splitting import Contents
    from .setting import Setting

LOOKED_AT = 40
"""Seeds of no split that tell, where two sides share a state, whether the environment has few."""


def starts_of(setting: Setting, environment: str) -> dict[str, Contents]:
    """Side -> what stands on it of an environment -> a digest of what an episode begins with: words and observation.

    All demonstrations, probes and evaluated states, and as many training states as the first round draws; that costs a
    reset each. A reset that failed has none.
    """
    from ..envs.splits import seeds

    config = setting.config
    source = setting.sources()[setting.task(environment, 0).category]
    drawn = -(-(config.tasks_per_step or 1) // len(setting.names))
    asked = {
        "training": [source(i).seed for i in range(drawn)],
        "probes": seeds("probe", config.gate_states) if config.gate != "none" else [],
        "evaluation": seeds("eval", config.eval_episodes, config.eval_offset),
    }
    sides: dict[str, Contents] = {side: _of_seeds(setting, environment, some) for side, some in asked.items() if some}
    if shown := setting.demonstrations[environment]:
        sides["demonstrations"] = {
            f"demonstration {place} of {environment}": [_digest(each.instruction, each.observations, each.images)]
            for place, each in enumerate(shown)
        }
    return sides


def has_few(setting: Setting, environment: str) -> bool:
    """Whether an environment begins so seldom in a new state that seeds keep no two sides apart."""
    from ..envs.splits import seeds

    found = _of_seeds(setting, environment, seeds("tune", LOOKED_AT)).values()
    return len({key for (key,) in found}) < len(found)


def meet(sides: Mapping[str, Contents]) -> bool:
    """Whether any two sides share a state."""
    apart = [{key for keys in things.values() for key in keys} for things in sides.values()]
    return sum(map(len, apart)) > len(set().union(*apart))


def evaluated_elsewhere(sides: Mapping[str, Contents]) -> int:
    """How many evaluated states stand on another side too."""
    others = {key for side, things in sides.items() if side != "evaluation" for keys in things.values() for key in keys}
    return sum(key in others for keys in sides["evaluation"].values() for key in keys)


def _of_seeds(setting: Setting, environment: str, some: Sequence[int]) -> dict[str, list[str]]:
    """The seeds, each with the digest of its initial state."""
    from ..envs.pool import EpisodeRequest
    from ..envs.simulator import spec_of

    told = spec_of(environment).told
    blind = not setting.pool.sizes(environment)[0]
    episodes = setting.pool.run(
        [EpisodeRequest(environment, seed, 0) for seed in some], _never, render=setting.watched if blind else None
    )
    return {
        f"seed {each.seed} of {environment}": [_digest(told(each.seed), each.observations, each.images)]
        for each in episodes
        if each.fault is None
    }


def _digest(instruction: str, observations: NDArray[np.float32], images: Mapping[str, Any] | None) -> str:
    """Of the words and the first observation; of the first pictures where there are no numbers."""
    first = [observations[0]] if observations.shape[1] else [film[0] for _, film in sorted((images or {}).items())]
    seen = b"".join(np.ascontiguousarray(part).tobytes() for part in first)
    return hashlib.sha256(instruction.encode() + b"\0" + seen).hexdigest()[:16]


def _never(rows: NDArray[np.int64], observations: NDArray[np.float32]) -> NDArray[np.float32]:
    raise AssertionError("episodes of horizon 0 take no action")
