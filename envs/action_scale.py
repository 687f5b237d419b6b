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

    A dimension that never moved (``low`` equals ``high``) becomes 0, and goes back to where it stood.

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
            UsageError: bounds of different sizes, not finite, or of a scaled dimension in the wrong order.
        """
        below, above = np.asarray(low, np.float32).reshape(-1), np.asarray(high, np.float32).reshape(-1)
        mask = np.ones(len(below), bool) if scaled is None else np.asarray(scaled, bool).reshape(-1)
        if not len(below) == len(above) == len(mask):
            raise UsageError(f"action scale: low has {len(below)} numbers, high {len(above)}, scaled {len(mask)}")
        wrong = np.flatnonzero(mask & ~((above >= below) & np.isfinite(below) & np.isfinite(above)))
        if len(wrong):
            raise UsageError(
                f"action scale: dimension {wrong[0]} goes from {below[wrong[0]]:g} to {above[wrong[0]]:g}; "
                "bounds are finite, the lower one first"
            )
        return cls(below, above, mask)

    @classmethod
    def of(cls, actions: ArrayLike, tails: float = 0.01, scaled: ArrayLike | None = None) -> ActionScale:
        """The map from the bounds of these actions [N, A].

        A dimension without width between the tails (a gripper that is hardly ever closed) gets its whole range, and
        so does one that only takes two values.

        Args:
            tails: share of the actions that may lie beyond each bound; 0 makes the range.
        """
        values = np.asarray(actions, np.float64)
        low, high = np.quantile(values, [tails, 1 - tails], axis=0)
        least, most = values.min(0), values.max(0)
        switched = ((values == least) | (values == most)).all(0) | (low == high)
        return cls.between(np.where(switched, least, low), np.where(switched, most, high), scaled)

    def normalised(self, actions: ArrayLike) -> Floats:
        """[..., A] in the robot's units -> [..., A] in [-1, 1]; what lies outside the bounds is cut.

        Raises:
            UsageError: actions of another size.
        """
        values = self._sized(actions)
        width = self.high - self.low
        share = np.where(width > 0, 2 * (values - self.low) / np.where(width > 0, width, 1) - 1, 0)
        return np.asarray(np.clip(np.where(self.scaled, share, values), -1, 1), np.float32)

    def original(self, actions: ArrayLike) -> Floats:
        """[..., A] in [-1, 1] -> [..., A] in the robot's units; raises as ``normalised``."""
        values = self._sized(actions)
        scaled = 0.5 * (values + 1) * (self.high - self.low) + self.low
        return np.asarray(np.where(self.scaled, scaled, values), np.float32)

    def _sized(self, actions: ArrayLike) -> Floats:
        values = np.asarray(actions, np.float32)
        if values.shape[-1:] != self.low.shape:
            raise UsageError(f"actions of shape {list(values.shape)}: the scale has {len(self.low)} numbers")
        return values
