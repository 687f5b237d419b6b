"""Between a robot's own units and the [-1, 1] in which policies here act."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ActionScale:
    """An affine map per action dimension: ``low`` becomes -1, ``high`` becomes 1.

    Attributes:
        low, high: [A] in the robot's units.
        scaled: [A] bool; a dimension that is not scaled passes as it is (a gripper that is in [-1, 1] already).
    """

    low: Floats
    high: Floats
    scaled: NDArray[np.bool_]

    @classmethod
    def between(cls, low: ArrayLike, high: ArrayLike, scaled: ArrayLike | None = None) -> ActionScale:
        """The map from these bounds.

        Raises:
            UsageError: bounds of different sizes, or a scaled dimension without width.
        """
        below, above = np.asarray(low, np.float32).reshape(-1), np.asarray(high, np.float32).reshape(-1)
        mask = np.ones(len(below), bool) if scaled is None else np.asarray(scaled, bool).reshape(-1)
        if not len(below) == len(above) == len(mask):
            raise UsageError(f"action scale: low has {len(below)} numbers, high {len(above)}, scaled {len(mask)}")
        flat = np.flatnonzero(mask & ~(above > below))
        if len(flat):
            raise UsageError(
                f"action scale: dimension {flat[0]} goes from {below[flat[0]]:g} to {above[flat[0]]:g} and has no width"
            )
        return cls(below, above, mask)

    def normalised(self, actions: ArrayLike) -> Floats:
        """[..., A] in the robot's units -> [..., A] in [-1, 1]; what lies outside the bounds is cut."""
        values = np.asarray(actions, np.float32)
        share = 2 * (values - self.low) / np.where(self.scaled, self.high - self.low, 1) - 1
        return np.asarray(np.clip(np.where(self.scaled, share, values), -1, 1), np.float32)

    def original(self, actions: ArrayLike) -> Floats:
        """[..., A] in [-1, 1] -> [..., A] in the robot's units."""
        values = np.asarray(actions, np.float32)
        return np.asarray(
            np.where(self.scaled, 0.5 * (values + 1) * (self.high - self.low) + self.low, values), np.float32
        )
