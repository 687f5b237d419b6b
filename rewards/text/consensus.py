"""Rewards without labels: what several attempts at one question agree on.

    reward = Reward(MajorityVote())

Each compares the answers of a question's samples, so it needs several of them in one call. What agrees is not
therefore right: a wrong majority is amplified, and a majority as the only reward ends in the same answer to
everything. Watch a few labelled probes, or a gate that asks something else.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ...numbers import rows_by_key
from ..models.exhibits import text_of
from .answers import vote_of

Vote = Callable[[str], Hashable | None]
"""A completion -> its vote, equal for equal answers; None where it gives none."""

Undo = Callable[[Any], Hashable] | Mapping[Any, Hashable]

Embedding = Callable[[Sequence[str]], Any]
"""N texts -> [N, D]; cosines are compared, so lengths do not matter."""


def majority(votes: Sequence[Hashable | None], weights: Sequence[Fraction] | None = None) -> Hashable | None:
    """The vote with the most weight (each 1 by default), the earliest among equals; None if nobody votes."""
    totals: dict[Hashable, Fraction] = {}
    for vote, weight in zip(votes, weights or [Fraction(1)] * len(votes), strict=True):
        if vote is not None:
            totals[vote] = totals.get(vote, Fraction(0)) + weight
    return max(totals, key=totals.__getitem__, default=None)  # of equal ones the first that was met


def self_consistency(votes: Sequence[Hashable | None]) -> Fraction:
    """The share of the most common vote among all attempts, those without a vote included; exact."""
    counts = Counter(vote for vote in votes if vote is not None)
    return Fraction(max(counts.values(), default=0), max(1, len(votes)))


def members(groups: Sequence[Any] | None, who: str) -> list[list[int]]:
    """The rows of each group, in order.

    Raises:
        ValueError: there is no such column.
    """
    if groups is None:
        raise ValueError(f'{who} needs the column "groups": one id per sample, the same for the samples of a question')
    return list(rows_by_key(groups).values())


class _GroupReward:
    group_aware = True
    families = frozenset({"majority vote"})

    def __init__(self, vote: Vote = vote_of) -> None:
        self.vote = vote

    def votes(self, completions: Sequence[Any]) -> list[Hashable | None]:
        return [self.vote(text_of(completion)) for completion in completions]


class MajorityVote(_GroupReward):
    """1.0 for the answer that most samples of the question give, else ``other`` (TTRL, arXiv 2504.16084).

    Ties go to the answer that was given first. A sample without an answer does not vote and scores ``other``. Votes are
    counted as in the released code (PRIME-RL/TTRL, c46b671; by reading).

    Args:
        vote: reads the answer of a completion; by default :func:`.answers.vote_of`.
        other: what every other answer scores.
    """

    def __init__(self, vote: Vote = vote_of, other: float = 0.0) -> None:
        super().__init__(vote)
        self.other = other

    def __call__(self, completions: Sequence[Any], groups: Sequence[Any] | None = None, **columns: Any) -> list[float]:
        """One score per sample."""
        votes = self.votes(completions)
        scores = [self.other] * len(votes)
        for rows in members(groups, type(self).__name__):
            winner = majority([votes[row] for row in rows])
            for row in rows:
                if winner is not None and votes[row] == winner:
                    scores[row] = 1.0
        return scores


class SelfConsistency(_GroupReward):
    """The share of the question's samples that give the same answer: a vote that keeps doubts. No answer: 0.0.

    Args:
        vote: as for :class:`MajorityVote`.
    """

    def __call__(self, completions: Sequence[Any], groups: Sequence[Any] | None = None, **columns: Any) -> list[float]:
        """One score per sample, in 0..1."""
        votes = self.votes(completions)
        scores = [0.0] * len(votes)
        for rows in members(groups, type(self).__name__):
            counts = Counter(votes[row] for row in rows)
            for row in rows:
                scores[row] = 0.0 if votes[row] is None else counts[votes[row]] / len(rows)
        return scores


class CrowdVote(_GroupReward):
    """1.0 for the answer that several models together prefer, else 0.0 (RLCCF, arXiv 2508.12338).

    Every sample votes with the self-consistency of its model on this question, SC = (count of its most common answer)
    / (its samples): the winner is argmax_a Σ_n Σ_k SC_n · 1[o_nk = a] (checked against a summary of the paper, not
    against the paper). A model's weight thus grows about with the square of its confidence; where wrong answers are
    as sure as right ones this helps nobody, and ``weighted=False`` counts heads. Ties go to the answer given first.

    Models are told apart by ``player`` of the rollouts. The column ``tasks`` says what is one question, since groups
    are kept apart by model for their advantages.

    Args:
        weighted: vote with the self-consistencies.
        vote: as for :class:`MajorityVote`.
    """

    def __init__(self, weighted: bool = True, vote: Vote = vote_of) -> None:
        super().__init__(vote)
        self.weighted = weighted

    def __call__(
        self, completions: Sequence[Any], rollouts: Sequence[Any], tasks: Sequence[Any], **columns: Any
    ) -> list[float]:
        """One score per sample."""
        votes = self.votes(completions)
        scores = [0.0] * len(votes)
        for rows in members([task.id for task in tasks], type(self).__name__):
            trust = {
                player: self_consistency([votes[rows[i]] for i in some]) if self.weighted else Fraction(1)
                for player, some in rows_by_key(rollouts[row].player for row in rows).items()
            }
            winner = majority([votes[row] for row in rows], [trust[rollouts[row].player] for row in rows])
            for row in rows:
                scores[row] = float(winner is not None and votes[row] == winner)
        return scores


def band(right: bool, novelty: float) -> float:
    """EVOL-RL's map: 0.5 + 0.5 · novelty for the majority, -1 + 0.5 · novelty for the others; novelty in 0..1."""
    return (0.5 if right else -1.0) + 0.5 * novelty


class MajorityNovelty(_GroupReward):
    """The majority decides the sign of the reward, novelty its size (EVOL-RL, arXiv 2509.15194).

    With the cosines s, clipped to 0..1, of the samples that give an answer: u_i = 1 - [½ mean of s_ij over the others
    of i's side + ½ max of s_ij over all others], scaled to 0..1 between the least and the most novel of the side
    (majority or not), and then :func:`band`. A side whose samples are all equally novel gets the middle (0.75, -0.75),
    a side of one its best (1.0, -0.5), and no answer -1.0. No minority sample is above a majority one. Checked against
    a description of the released code, not against the paper. There, a group with one valid answer scores -1
    throughout; here that answer is a majority of one.

    The paper embeds the reasoning with a language model. The default here counts groups of letters, which sees other
    words and not other thoughts; :class:`.embeddings.MiniLM` embeds sentences.

    Args:
        embedding: N texts -> [N, D].
        text: what of a completion is compared; by default all of it.
        vote: as for :class:`MajorityVote`.
    """

    families = frozenset({"majority vote", "novelty"})

    def __init__(
        self,
        embedding: Embedding | None = None,
        text: Callable[[str], str] | None = None,
        vote: Vote = vote_of,
    ) -> None:
        super().__init__(vote)
        self.embedding: Embedding = letter_groups if embedding is None else embedding
        self.text = text

    def __call__(self, completions: Sequence[Any], groups: Sequence[Any] | None = None, **columns: Any) -> list[float]:
        """One score per sample, in -1..1.

        Raises:
            ValueError: no column groups, or the embedding gives another number of rows or one that is not finite.
        """
        votes = self.votes(completions)
        texts = [text_of(completion) for completion in completions]
        scores = [-1.0] * len(votes)
        for rows in members(groups, type(self).__name__):
            valid = [row for row in rows if votes[row] is not None]
            if not valid:
                continue
            winner = majority([votes[row] for row in valid])
            right = np.array([votes[row] == winner for row in valid])
            alike = self._cosines([texts[row] if self.text is None else self.text(texts[row]) for row in valid])
            for row, side, novelty in zip(valid, right, _novelty(alike, right), strict=True):
                scores[row] = band(bool(side), float(novelty))
        return scores

    def _cosines(self, texts: Sequence[str]) -> NDArray[np.float64]:
        vectors = np.asarray(self.embedding(texts), dtype=np.float64)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise ValueError(f"the embedding of {len(texts)} texts is of shape {vectors.shape}, or not finite")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = vectors / np.where(lengths > 0, lengths, 1.0)
        return np.clip(unit @ unit.T, 0.0, 1.0)


def _novelty(alike: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[N, N] cosines and sides [N] -> the novelty of each within its side, in 0..1."""
    novelty = np.empty(len(right))
    others = alike - 2 * np.eye(len(right))  # below every cosine, so that nobody is compared with itself
    for side in (right, ~right):
        some = np.flatnonzero(side)
        if len(some) == 1:
            novelty[some] = 1.0
        elif len(some) > 1:
            same = alike[np.ix_(some, some)]
            mean = (same.sum(1) - same.diagonal()) / (len(some) - 1)
            raw = 1 - (mean + others[some].max(1)) / 2
            spread = raw.max() - raw.min()
            # Rounding leaves equal texts a little apart.
            novelty[some] = (raw - raw.min()) / spread if spread > 1e-9 else 0.5
    return novelty


def letter_groups(texts: Sequence[str], size: int = 3, width: int = 1024) -> NDArray[np.float64]:
    """How often each group of letters stands in each text, hashed: [N, width], the same on every machine.

    Args:
        size: letters per group.
        width: groups are spread over so many columns; some share one.
    """
    if size < 1 or width < 1:
        raise UsageError(f"letter groups have a positive size and width, not {size} and {width}")
    table = np.zeros((len(texts), width))
    for row, text in enumerate(texts):
        padded = f" {' '.join(text.casefold().split())} "
        groups = Counter(padded[start : start + size] for start in range(max(1, len(padded) - size + 1)))
        for group, count in groups.items():
            table[row, zlib.crc32(group.encode("utf-8", "surrogatepass")) % width] += count
    return table


class ViewConsistency(_GroupReward):
    """Do the views of one question get the same answer? The share of the other views' samples that agree.

    Views are tasks with one ``parent`` (or one that has views and these): the same question about a turned, mirrored or
    recoloured picture. The effect of that on answers is known, and is undone first: by the column ``back``, for each
    sample a function from answers of the view to answers of the parent, or a mapping (what is not in it stays).

    A sample is compared with the samples of every other view, and the score is the mean over those views; no answer
    scores 0.0, and None is for a question with one view. Views that share a mistake agree on it.

    Args:
        vote: reads the answer of a completion, as ``back`` takes it.
    """

    families = frozenset({"view consistency"})

    def __call__(
        self,
        completions: Sequence[Any],
        tasks: Sequence[Any],
        back: Sequence[Undo | None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One score per sample."""
        votes = self.votes(completions)
        if back is not None:
            votes = [
                vote if undo is None or vote is None else undo(vote) if callable(undo) else undo.get(vote, vote)
                for vote, undo in zip(votes, back, strict=True)
            ]
        scores: list[float | None] = [None] * len(votes)
        for rows in members([task.parent or task.id for task in tasks], type(self).__name__):
            views = [[rows[i] for i in some] for some in rows_by_key(tasks[row].id for row in rows).values()]
            counts = [Counter(votes[row] for row in some) for some in views]
            for row in rows:
                shares = [
                    count[votes[row]] / len(some) for some, count in zip(views, counts, strict=True) if row not in some
                ]
                if shares:
                    scores[row] = 0.0 if votes[row] is None else math.fsum(shares) / len(shares)
        return scores
