"""Self-verification by a second look: does each cell that an answer points at show what the answer takes it for?

The critic's eyes are the policy's own, frozen as they were at the start; what follows from what is a rule of the small
world. It is label-free and model-perceived; it is not a learned verifier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...envs.toys import scenes
from ...envs.toys.scenes import Answer, Question, Scene
from ...numbers import rows_by_key
from ...types import Score
from .glimpse import GlimpseModel

SECOND_LOOK = frozenset({"second look"})

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


def standing(question: Question, said: Sequence[Answer], seen: Scene) -> Answer | None:
    """What several attempts come to once each has been looked at again; None where none of them stands.

    Of counts it is every cell that any attempt pointed at and that does show what is counted: what one attempt
    overlooks another points at. Else it is the most frequent answer all of whose claims hold.
    """
    if question.type in ("count", "either"):
        pointed = tuple(sorted({cell for answer in said for cell in answer.cells}))
        held = scenes.claims(question, Answer(pointed, ""), seen)
        cells = tuple(cell for cell, shows in zip(pointed, held, strict=False) if shows)
        return Answer(cells, str(len(cells))) if said else None
    holding = [answer for answer in said if all(scenes.claims(question, answer, seen))]
    return Counter(holding).most_common(1)[0][0] if holding else None


@dataclass(frozen=True)
class RereadingConsensus:
    """1 for an answer that agrees with the consensus after a second look (see ``standing``), else 0.

    A question without a consensus does not apply, and nothing is learned from it; where no question has one, all get 0.
    """

    eyes: Reader

    group_aware = True
    families = SECOND_LOOK

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], images: Any, groups: Sequence[str], **columns: Any
    ) -> list[Score]:
        return or_zeros(self.agreement(prompts, completions, images, groups))

    def agreement(
        self, prompts: Sequence[Any], completions: Sequence[Any], images: Any, groups: Sequence[str]
    ) -> list[Score]:
        """The scores, None for all answers to a question without a consensus."""
        answers = [scenes.parse_answer(str(said)) for said in completions]
        seen = self.eyes([image[0] for image in images])
        scores: list[Score] = [None] * len(groups)
        for members in rows_by_key(groups).values():
            said = [answer for row in members if (answer := answers[row]) is not None]
            found = standing(Question.parse(str(prompts[members[0]])), said, seen[members[0]])
            for row in members if found is not None else ():
                answer = answers[row]
                scores[row] = float(answer is not None and found is not None and answer.word == found.word)
        return scores


def or_zeros(scores: Sequence[Score]) -> list[Score]:
    """A round that learns nothing goes on: zeros where nothing applies, else the scores."""
    return [0.0] * len(scores) if all(score is None for score in scores) else list(scores)


@dataclass(frozen=True)
class Rereading:
    """The share of an answer's claims that hold at a second look; 0 for what cannot be parsed."""

    eyes: Reader

    families = SECOND_LOOK

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], images: Any, **columns: Any) -> list[float]:
        scores = []
        for prompt, said, scene in zip(prompts, completions, self.eyes([i[0] for i in images]), strict=True):
            answer = scenes.parse_answer(str(said))
            held = [] if answer is None else scenes.claims(Question.parse(str(prompt)), answer, scene)
            scores.append(sum(held) / len(held) if held else 0.0)
        return scores
