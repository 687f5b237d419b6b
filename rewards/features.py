"""Relations between hand, objects and goal that progress critics look at.

State critics see relations rather than raw positions, because few demonstrations cover few places.
Which relations they use is a named choice, reported with every result: "goal" relations make a task
with a marked goal much easier to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

RELATIONS = (
    "hand-object",
    "hand-moved",
    "object-moved",
    "object-turned",
    "second-moved",
    "hand-second",
    "gripper",
    "object-goal",
    "hand-goal",
)
GOAL_FREE = tuple(name for name in RELATIONS if "goal" not in name)


@dataclass(frozen=True)
class RelationFeatures:
    """[N, D] observations and the [N, D] first observations of their episodes -> [N, F] features.

    Attributes:
        layout: where things stand in an observation: "hand", "gripper", "object", "object_rotation",
            "second" and "goal" as slices.
        names: which of RELATIONS to use.
        unit: metres per unit of the features.
        near: metres below which a distance counts as none, in its logarithm.
    """

    layout: Mapping[str, slice]
    names: tuple[str, ...] = RELATIONS
    unit: float = 0.1
    near: float = 0.01

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in RELATIONS]
        if unknown:
            raise ValueError(f"unknown relation {unknown[0]!r}; there are {', '.join(RELATIONS)}")

    def __call__(self, observations: Tensor, initial: Tensor) -> Tensor:
        parts = []
        for name in self.names:
            vector = self.relation(name, observations, initial)
            if vector.shape[-1] == 3:
                distance = vector.norm(dim=-1, keepdim=True)
                parts += [vector / self.unit, ((distance + self.near) / self.unit).log()]
            else:
                parts.append(vector)
        return torch.cat(parts, -1)

    def relation(self, name: str, now: Tensor, initial: Tensor) -> Tensor:
        """One relation as a vector [N, 3], [N, 4] or [N, 1]: metres, quaternion components, opening."""
        if name == "gripper":
            return now[:, self.layout["gripper"]]
        if name == "object-turned":
            where = self.layout["object_rotation"]
            return now[:, where] - initial[:, where]
        first, second = name.split("-")
        if second == "moved":
            return now[:, self.layout[first]] - initial[:, self.layout[first]]
        return now[:, self.layout[first]] - now[:, self.layout[second]]
