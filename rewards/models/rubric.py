"""Generative reward model: a judge that writes principles, a critique by them and a score, several times over.

    reward = Reward(RubricJudge(k=8))  # of an output, or with a function of one's own: RubricJudge(write, meta=sure)

SPCT / DeepSeek-GRM (arXiv 2504.02495; checked against summaries of the paper, not against the paper). One score of 1
to 10 is coarse and noisy; the sum of k has k times the range, and a filter leaves out the critiques that look wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ...errors import UsageError
from ...families import families_of
from .exhibits import Exhibit, Exhibitor, Prompt, check_fields, texts_of
from .vlm import QWEN, VLM

Writer = Callable[[Sequence[Prompt]], Sequence[str]]
"""Prompts, each a question after the pictures that it is about -> one sampled text for each."""

Meta = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]
"""Questions and a critique of each -> how likely that critique is right."""

_FIELDS = ("prompt", "completion", "low", "high")
_SHOWN = {
    "text": "Question: {prompt}\nAnswer: {completion}\n",
    "picture": "The picture was made for this text: {prompt}\n",
    "episode": "The pictures show one attempt in order of time. Its task: {prompt}\n",
}
_RUBRIC = (
    "State the principles by which this should be judged, with the weight of each. Judge it by them, point by point. "
    'Then end with one line "Score: N", where N is a whole number from {low} (worst) to {high} (best).'
)


class RubricJudge(Exhibitor):
    """The sum of k sampled scores of each output, from k · low to k · high; higher is better.

    Critiques whose score cannot be read, or is off the scale, are left out, and the mean of the others stands for them,
    so that the scale stays the same; None if none can be read. With ``meta`` the best ``keep`` critiques are summed
    (times k / keep, for the same scale); among equally good ones the earlier.

    The judged text stands in the question. The score is read from what the writer says last, so an answer that contains
    "Score: 10" does not score itself; it can still argue with the judge in words.

    Args:
        writer: samples texts; called once with every question k times. Or the name of a model that does.
        k: critiques per output.
        meta: how likely each critique is right, in the order of the questions.
        keep: critiques that the filter leaves, by default half of them, at least one.
        question: with the fields {prompt}, {completion} (the output, where it is a text), {low} and {high}.
        low, high: ends of the scale, whole numbers.
        frames: how many frames of an episode are shown.

    Raises:
        UsageError: a field that there is not, an empty scale, k < 1, or keep without meta or not in 1..k.
    """

    def __init__(
        self,
        writer: Writer | str = QWEN,
        *,
        k: int = 8,
        meta: Meta | None = None,
        keep: int | None = None,
        question: str | None = None,
        low: int = 1,
        high: int = 10,
        frames: int = 4,
    ) -> None:
        super().__init__(frames)
        check_fields(question, _FIELDS)
        if k < 1 or high <= low:
            raise UsageError(f"a rubric judge needs k of at least 1 and a scale, not k={k} and {low}..{high}")
        if keep is not None and (meta is None or not 1 <= keep <= k):
            raise UsageError(f"keep={keep} of {k} critiques needs a meta judge and a number in 1..{k}")
        self.writer: Writer = VLM(writer).sample if isinstance(writer, str) else writer
        self.meta, self.question = meta, question
        self.k, self.keep = k, max(1, k // 2) if keep is None else keep
        self.low, self.high = low, high
        self.minimum = float(k * low)

    @property
    def families(self) -> frozenset[str]:
        return families_of(self.writer) if self.meta is None else families_of(self.writer, self.meta)

    def __call__(
        self,
        images: Sequence[Any] | Tensor | None = None,
        prompts: Sequence[Any] = (),
        completions: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One score per sample; arguments as for :class:`.judge.YesNoJudge`.

        Raises:
            ValueError: an output that is neither text nor picture, or another number of critiques than asked for.
        """
        exhibits = self.exhibits(images, completions)
        texts = texts_of(prompts, len(exhibits))
        asked = [self._question(exhibit, text) for exhibit, text in zip(exhibits, texts, strict=True)]
        questions = [question for question in asked for _ in range(self.k)]
        critiques = list(self.writer(questions))
        trust = [0.0] * len(critiques) if self.meta is None else [float(p) for p in self.meta(questions, critiques)]
        if not len(critiques) == len(trust) == len(questions):
            raise ValueError(
                f"{len(questions)} critiques were asked for: {len(critiques)} were written, {len(trust)} judged"
            )
        rows = range(0, len(questions), self.k)
        return [self._vote(critiques[row : row + self.k], trust[row : row + self.k]) for row in rows]

    def _question(self, exhibit: Exhibit, prompt: str) -> Prompt:
        kind = "text" if exhibit.text is not None else "episode" if len(exhibit.pictures) > 1 else "picture"
        words = self.question or _SHOWN[kind] + _RUBRIC
        filled = words.format(prompt=prompt, completion=exhibit.text or "", low=self.low, high=self.high)
        return *exhibit.pictures, filled

    def _vote(self, critiques: Sequence[str], trust: Sequence[float]) -> float | None:
        read = [(score_of(text, self.low, self.high), sure) for text, sure in zip(critiques, trust, strict=True)]
        scored = [(score, sure) for score, sure in read if score is not None]
        if self.meta is not None:
            scored = sorted(scored, key=lambda pair: -pair[1])[: self.keep]
        if not scored:
            return None
        return self.k * math.fsum(score for score, _ in scored) / len(scored)


_SCORE = re.compile(
    r"\bscore\b[\s*`]*(?:is\b|:|=)?[\s*`]*(?:\\boxed\{|\[)?[\s*`]*(-?[0-9]+(?:\.[0-9]+)?)", re.IGNORECASE
)
_BOXED = re.compile(r"\\boxed\{\s*(-?[0-9]+(?:\.[0-9]+)?)\s*\}")


def score_of(text: str, low: int, high: int) -> int | None:
    r"""The last "Score: N" of a critique, else its last \boxed{N}; None if it is no whole number in low..high."""
    found = _SCORE.findall(text) or _BOXED.findall(text)
    if not found or not re.fullmatch(r"-?[0-9]{1,9}", found[-1]):
        return None
    score = int(found[-1])
    return score if low <= score <= high else None
