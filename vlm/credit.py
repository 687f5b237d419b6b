"""Credit per turn: which words of a conversation a score belongs to.

``GroupRelative(per_segment=True)`` gives each turn the sum of its own score and of all later ones. That is right for a
conversation that works towards one end, and wrong where a turn must not answer for what follows: SCoRe pays for the
improvement of the second attempt over the first, and a first attempt that shares in that bonus learns to fail.
``own_turn`` writes scores whose sums are each turn's credit alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..calling import MADE, OF_TOKENS, call, completion_of, picked, settled
from ..errors import unknown
from ..families import families_of, name_of
from ..returned import scores_of
from ..trainers.objectives.base import Metrics, Term
from ..types import Batch, Evaluation, RewardFunction, Score
from .conversation import Transcript

PER_ROLLOUT = ("rollouts", "log_probs", OF_TOKENS, "log_extra", *MADE)
"""Columns that say nothing of a single turn, or are made anew for it."""


def own_turn(credits: Sequence[float]) -> Tensor:
    """[S] scores whose sums from each turn on are the given credits: c_k - c_(k+1), and the last one itself."""
    values = torch.tensor(credits, dtype=torch.float64)
    return torch.cat([values[:-1] - values[1:], values[-1:]]).float()


class PerTurn:
    """A reward that scores every turn by another reward, as if each had been a completion: [S] per rollout.

    A turn that the other does not score gets 0.
    """

    def __init__(self, reward: RewardFunction) -> None:
        self.reward = reward
        self.name = f"{getattr(reward, 'name', type(reward).__name__)} per turn"
        self.families = families_of(reward)

    def __call__(self, outputs: Sequence[Any], **columns: Any) -> list[Tensor]:
        """Scores by turn.

        Raises:
            ValueError: an output is no conversation.
        """
        scores = turn_scores(self.reward, outputs, columns)
        return [torch.tensor([0.0 if score is None else score for score in row]) for row in scores]


class Correction:
    """SCoRe's rewards for an attempt and its correction (arXiv 2409.12917; checked against a re-implementation's
    account of eq. 3-5, not against the paper).

    Stage "first" pays the second attempt r2 and the first nothing: a ``KLPenalty`` ``OnTurns`` 0 keeps that one where
    it is. (The paper's formula lets the gradient of r2 reach the first attempt too; leaving it out is our choice.)
    Stage "second" pays the first attempt r1 and the second r2 + alpha (r2 - r1). Wants
    ``GroupRelative(per_segment=True)``; scale="none" leaves alpha its strength.

    A conversation that ended after its first attempt has no r2; that attempt is paid as always. "total" sums up to
    the first attempt's credit; how a run does is told by "first", "second", "gain" (r2 - r1) and "copied" (the share
    of second attempts that say the same; near 1 is the collapse that SCoRe is against).

    Args:
        reward: of one attempt, a number for each.
    """

    def __init__(self, reward: RewardFunction, stage: Literal["first", "second"] = "second", alpha: float = 10.0):
        if stage not in ("first", "second"):
            raise unknown("stage", stage, ("first", "second"))
        self.reward, self.stage, self.alpha = reward, stage, alpha
        self.families = families_of(reward)

    @property
    def terms(self) -> list[tuple[float, RewardFunction]]:
        """What it is made of, so that a message names the term that raised."""
        return [(1.0, term) for _, term in getattr(self.reward, "terms", [(1.0, self.reward)])]

    def __call__(self, outputs: Sequence[Any], **columns: Any) -> Mapping[str, Sequence[Score]]:
        """Scores of each conversation of one or two turns.

        Raises:
            ValueError: an output is no conversation, or one of more turns.
        """
        rows = turn_scores(self.reward, outputs, columns)
        named: dict[str, list[Score]] = {name: [] for name in ("total", "first", "second", "gain", "copied")}
        for place, (row, said) in enumerate(zip(rows, outputs, strict=True)):
            if len(row) > 2:
                raise ValueError(f"sample {place} has {len(row)} turns: a correction is two")
            first, second = row[0], row[1] if len(row) == 2 else None
            named["total"].append(self._credited(first, second, len(row)))
            named["first"].append(first)
            named["second"].append(second)
            named["gain"].append(None if first is None or second is None else second - first)
            texts = [turn.text.strip() for turn in said.turns]
            named["copied"].append(float(texts[0] == texts[1]) if len(row) == 2 else None)
        silent = [name for name, column in named.items() if all(score is None for score in column)]
        return {name: column for name, column in named.items() if name == "total" or name not in silent}

    def _credited(self, first: float | None, second: float | None, turns: int) -> Score:
        if first is None or (turns == 2 and second is None):
            return None
        paid = first if self.stage == "second" else 0.0
        if second is None:
            return paid
        return own_turn([paid, second + (self.alpha * (second - first) if self.stage == "second" else 0.0)])


def turn_scores(reward: RewardFunction, outputs: Sequence[Any], columns: Mapping[str, Any]) -> list[list[float | None]]:
    """Scores of every turn of every conversation, in one call of the reward."""
    for place, output in enumerate(outputs):
        if not isinstance(output, Transcript):
            raise ValueError(f"sample {place} is no conversation but {type(output).__name__}")
    texts = [turn.text for output in outputs for turn in output.turns]
    owner = [row for row, output in enumerate(outputs) for _ in output.turns]
    kept = {name: column for name, column in columns.items() if name not in PER_ROLLOUT}
    spread = picked(kept, owner)
    tasks = spread.get("tasks")
    said = texts if tasks is None else [completion_of(task, text) for task, text in zip(tasks, texts, strict=True)]
    table = spread | {"completions": said, "outputs": texts, "episodes": texts}
    (result,) = settled([lambda: call(reward, table)])
    flat = scores_of(name_of(reward), result, table)["total"]
    if len(flat) != len(texts):
        raise ValueError(f"the reward gave {len(flat)} scores for {len(texts)} turns")
    rows: list[list[float | None]] = [[] for _ in outputs]
    for row, score in zip(owner, flat, strict=True):
        rows[row].append(None if score is None else float(score))  # type: ignore[arg-type]  # checked by scoring
    return rows


@dataclass(frozen=True)
class OnTurns(Term):
    """A term on the words of some turns alone, such as ``OnTurns(KLPenalty(), (0,))`` for SCoRe's first stage.

    The divisors stay those of all rollouts and decisions; a mean over a rollout's decisions is over those that count.
    """

    term: Term
    turns: tuple[int, ...]

    @property
    def needs(self) -> frozenset[str]:
        return self.term.needs

    def __call__(self, now: Evaluation, batch: Batch) -> tuple[Tensor, Metrics]:
        chosen = torch.isin(batch.segments, torch.tensor(self.turns, device=batch.segments.device))
        return self.term(now, replace(batch, mask=batch.mask & chosen, totals=batch.counts() | batch.totals))
