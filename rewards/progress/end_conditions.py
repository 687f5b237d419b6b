"""Goal classifier without training: does the world end up as it did in the demonstrations?

From the end states of a few demonstrations it reads which relations changed and came to the same
value each time, and scores how far an observation is from there. It shares neither the form nor the
training of the networks in ``critics.py``: a judge beside them, or the half of an estimate that knows the end.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...numbers import Floats
from .features import Features, check_shown

logger = logging.getLogger(__name__)

AGREE = 0.2
MOST = 256
"""Conditions of an instruction at most: beyond that an observation is a picture, whose numbers say the same often."""


@dataclass(frozen=True, eq=False)
class Condition:
    """A relation, the value it ends at, how far it came to get there, and how exactly it is met (same unit)."""

    relation: str
    target: Tensor
    distance: float
    tolerance: float


class EndConditions:
    """Scores an observation by how nearly every condition is met; the least met counts.

    A condition whose gap g is within its tolerance t scores 1, otherwise exp(-(g - t) / (sharpness * d)), d
    being how far the relation came in the demonstrations: nearly there is worth much less than there.

    A relation is a condition when it changed by more than ``moved`` during the demonstrations and its end
    values agree within a fifth of that change. Relations of the hand count only where nothing else did
    so. If none agrees that well, the one that agrees best is taken, and ``vague`` names the instruction.

    Works on any environment by ``StateFeatures()``, whose relations are single numbers of the observation, and
    how far two of them are apart where no single one agrees.

    Args:
        features: relations that may be used; metres for positions, quaternion components for turns (of
            ``StateFeatures``: in spreads of the demonstrations).
        moved: smallest change that counts.
        tolerance: how near counts as met, at least.
        sharpness: share of the way that costs a factor of e.
    """

    kind: Literal["absolute"] = "absolute"
    families = frozenset({"demonstrations:end conditions"})

    def __init__(
        self, features: Features, *, moved: float = 0.02, tolerance: float = 0.01, sharpness: float = 0.1
    ) -> None:
        self.features, self.moved, self.tolerance, self.sharpness = features, moved, tolerance, sharpness
        self.conditions: dict[str, list[Condition]] = {}
        self.vague: list[str] = []

    def fit(self, demonstrations: Sequence[Any]) -> None:
        """Read the conditions of every instruction from its demonstrations (``observations``, ``settle``).

        Raises:
            UsageError: there are none, or their observations are not finite.
        """
        check_shown(demonstrations)
        self.features = self.features.fitted(demonstrations)
        for text in dict.fromkeys(d.instruction for d in demonstrations):
            mine = [d for d in demonstrations if d.instruction == text]
            candidates: list[tuple[float, Condition]] = []
            clear: list[tuple[float, Condition]] = []
            for relations in self.features.end_relations():
                found = self._of(relations, mine)
                candidates += found
                clear = [pair for pair in found if pair[0] <= AGREE]
                if clear:
                    break
            if not clear:
                self.vague.append(text)
                clear = [min(candidates, key=lambda pair: pair[0])]
            if len(clear) > MOST:
                logger.warning("%r: %d numbers agree at the end, the %d clearest count", text, len(clear), MOST)
                clear = sorted(clear, key=lambda pair: pair[0])[:MOST]
            self.conditions[text] = [condition for _, condition in clear]

    def _of(self, relations: Sequence[str], demonstrations: Sequence[Any]) -> list[tuple[float, Condition]]:
        """Candidate conditions and how vague each is: the spread of end values over the change."""
        found = []
        for name in relations:
            tracks = [self._track(name, d) for d in demonstrations]
            ends = torch.stack([t[-1] for t in tracks])
            target = ends.mean(0)
            distance = float(torch.stack([t[0] - target for t in tracks]).norm(dim=-1).mean())
            spread = float((ends - target).norm(dim=-1).max())
            settling = max(_settling(t, d.settle) for t, d in zip(tracks, demonstrations, strict=True))
            tolerance = min(max(self.tolerance, spread, settling), distance / 2)
            vagueness = spread / distance if distance > self.moved else math.inf
            found.append((vagueness, Condition(name, target, max(distance, 1e-6), tolerance)))
        return found

    def _track(self, name: str, demonstration: Any) -> Tensor:
        observations = torch.as_tensor(demonstration.observations, dtype=torch.float32)
        return self.features.relation(name, observations, observations[:1].expand_as(observations))

    def __call__(
        self, observations: Floats, initial: Floats, instructions: Sequence[str], references: Floats | None = None
    ) -> Floats:
        """Scores [N] in 0..1 of observations [N, D] of episodes that began at initial [N, D]."""
        scores = np.ones(len(observations), dtype=np.float32)
        for text in dict.fromkeys(instructions):
            if text not in self.conditions:
                raise ValueError(f"there are no end conditions for {text!r}")
            rows = np.array([i for i, other in enumerate(instructions) if other == text])
            now, first = torch.as_tensor(observations[rows]), torch.as_tensor(initial[rows])
            met = [self._met(condition, now, first) for condition in self.conditions[text]]
            scores[rows] = torch.stack(met).amin(0).numpy()
        return scores

    def _met(self, condition: Condition, now: Tensor, initial: Tensor) -> Tensor:
        gap = (self.features.relation(condition.relation, now, initial) - condition.target).norm(dim=-1)
        excess = (gap - condition.tolerance).clamp(min=0)
        met: Tensor = (-excess / (self.sharpness * condition.distance)).exp()
        return met


def _settling(track: Tensor, settle: int) -> float:
    """How far a relation still moved in the second half of the settling steps."""
    return float((track[-1 - settle // 2 :] - track[-1]).norm(dim=-1).max())
