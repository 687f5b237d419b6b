"""Control baselines for progress models, which know nothing: what any estimator must beat before it is worth anything.

Cheap signals can look like progress. A clock orders every episode perfectly; a hand that travels far has often done
something. An audit of an estimator says little without theirs beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ...errors import UsageError
from ...numbers import Floats


class Clock:
    """How long an episode has lasted, as a share of ``limit`` observations: longer is better."""

    kind: Literal["terminal"] = "terminal"
    families = frozenset({"clock"})

    def __init__(self, limit: int = 200) -> None:
        self.limit = limit

    def __call__(self, observations: Any, initial: Any, instructions: Sequence[str], references: Any = None) -> Floats:
        return np.array([self.trace(clip, "")[-1] for clip in observations], np.float32)

    def trace(self, clip: Any, instruction: str) -> Floats:
        """[T] for a clip of T observations."""
        return np.minimum(np.arange(len(clip)) / self.limit, 1).astype(np.float32)


class Travel:
    """How far the hand has gone, x / (1 + x) with x in metres: farther is better.

    Args:
        hand: where its position stands in an observation; see :meth:`in_layout`.
    """

    kind: Literal["terminal"] = "terminal"
    families = frozenset({"travel"})

    def __init__(self, hand: slice | None = None) -> None:
        self.hand = hand

    def in_layout(self, layout: Mapping[str, slice], environment: str) -> Travel:
        """The same for the observations of an environment.

        Raises:
            UsageError: the layout names no hand.
        """
        if "hand" not in layout:
            raise UsageError(f"travel is a hand's, and the layout of {environment} names none: give its EnvSpec one")
        return Travel(layout["hand"])

    def __call__(self, observations: Any, initial: Any, instructions: Sequence[str], references: Any = None) -> Floats:
        return np.array([self.trace(clip, "")[-1] for clip in observations], np.float32)

    def trace(self, clip: Any, instruction: str) -> Floats:
        """[T] for a clip [T, D]."""
        if self.hand is None:
            raise UsageError("travel is a hand's: say where it stands in an observation, Travel(slice(0, 3))")
        steps = np.linalg.norm(np.diff(np.asarray(clip)[:, self.hand], axis=0), axis=-1)
        metres = np.concatenate([[0.0], steps.cumsum()])
        return np.asarray(metres / (1 + metres), np.float32)


class Constant:
    """One half, whatever happens."""

    kind: Literal["absolute"] = "absolute"
    families = frozenset({"constant"})

    def __call__(self, observations: Any, initial: Any, instructions: Sequence[str], references: Any = None) -> Floats:
        return np.full(len(observations), 0.5, np.float32)
