"""Self-critique by looking again: does each cell that an answer points at show what the answer takes it for?

The critic's eyes are the policy's own, frozen as they were at the start; what follows from what is a rule of the small
world. It is label-free and model-perceived; it is not a learned verifier.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..envs import scenes
from ..envs.scenes import Answer, Question, Scene
from ..types import Score
from .glimpse import GlimpseModel

Reader = Callable[[Sequence[Any]], Sequence[Scene]]
"""Pictures [32, 32, 3] -> what somebody reads in their cells."""


class OwnEyes:
    """What a frozen model reads in every cell, the likeliest kind of each. Equal pictures are read once."""

    def __init__(self, model: GlimpseModel, keep: int = 4096) -> None:
        self.model, self.keep = model, keep
        self._known: dict[int, tuple[Any, Scene, list[float]]] = {}

    def __call__(self, pictures: Sequence[Any]) -> list[Scene]:
        new = {id(p): p for p in pictures if id(p) not in self._known}
        if len(self._known) + len(new) > self.keep:
            self._known.clear()
            new = {id(p): p for p in pictures}
        if new:
            pixels = torch.from_numpy(np.stack(list(new.values()))).to(self.model.device)
            with torch.no_grad():
                likely, kinds = self.model.kinds(self.model.look(pixels)).exp().max(-1)
            for (key, picture), read, sure in zip(new.items(), kinds.tolist(), likely.tolist(), strict=True):
                self._known[key] = (picture, tuple(read), sure)
        return [self._known[id(p)][1] for p in pictures]

    def sure(self, picture: Any) -> list[float]:
        """The probability of what is read, per cell."""
        self([picture])
        return self._known[id(picture)][2]


def passing(prompts: Sequence[Any], completions: Sequence[Any], seen: Sequence[Scene]) -> list[Answer | None]:
    """The parsed answers all of whose claims hold; None for the others."""
    found: list[Answer | None] = []
    for prompt, said, scene in zip(prompts, completions, seen, strict=True):
        answer = scenes.parse_answer(str(said))
        holds = answer is not None and all(scenes.claims(Question.parse(str(prompt)), answer, scene))
        found.append(answer if holds else None)
    return found


def consensus(question: Question, answers: Sequence[Answer]) -> str:
    """The word that most passing answers give; of counts, which can only miss, the largest."""
    if question.type in ("count", "either"):
        return str(max(int(answer.word) for answer in answers))
    return Counter(answer.word for answer in answers).most_common(1)[0][0]


@dataclass(frozen=True)
class RereadingConsensus:
    """1 for an answer that passes the second look and is the consensus of those that do, else 0.

    A question with no passing answer does not apply: nothing is learned from it.
    """

    eyes: Reader

    group_aware = True

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], images: Any, groups: Sequence[str], **columns: Any
    ) -> list[Score]:
        found = passing(prompts, completions, self.eyes([image[0] for image in images]))
        rows: dict[str, list[int]] = defaultdict(list)
        for row, group in enumerate(groups):
            rows[group].append(row)
        scores: list[Score] = [None] * len(groups)
        for members in rows.values():
            passed = [answer for row in members if (answer := found[row]) is not None]
            if not passed:
                continue
            word = consensus(Question.parse(str(prompts[members[0]])), passed)
            for row in members:
                answer = found[row]
                scores[row] = float(answer is not None and answer.word == word)
        return scores


@dataclass(frozen=True)
class Rereading:
    """The share of an answer's claims that hold at a second look; 0 for what cannot be parsed."""

    eyes: Reader

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], images: Any, **columns: Any) -> list[float]:
        scores = []
        for prompt, said, scene in zip(prompts, completions, self.eyes([i[0] for i in images]), strict=True):
            answer = scenes.parse_answer(str(said))
            held = [] if answer is None else scenes.claims(Question.parse(str(prompt)), answer, scene)
            scores.append(sum(held) / len(held) if held else 0.0)
        return scores
