"""Judges that say yes or no: a vision-language model's probability of yes, to one output or to which is better.

    reward = Reward(YesNoJudge()) + 0.5 * Reward(PairwiseJudge("sharpness", against="group"))

One judge serves three kinds of output. A text (an answer) is put into the question, next to the task's own images;
a picture (of a denoising policy) is shown; of an episode (anything with ``frames``) some frames are shown. What a
judge says is a probability in 0..1, read from one forward pass and not sampled.

The judged text cannot write control tokens: chat markup and image placeholders inside it reach the judge as plain
text. It can still argue with the judge in words, so watch for answers that do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from ...errors import unknown
from ...families import families_of
from ...numbers import rows_by_key
from .exhibits import Exhibit, Exhibitor, Prompt, check_fields, is_text, text_of, texts_of
from .vlm import QWEN, VLM

Asker = Callable[[Sequence[Prompt]], Sequence[float] | Tensor]
"""Prompts, each a question after the pictures that it is about -> P(yes) of each, in 0..1; a ``VLM`` is one."""

SHOWS = "Does the picture show {prompt}? Answer yes or no."
DONE = "The pictures show one attempt in order of time. Is this done at the end: {prompt}? Answer yes or no."
RIGHT = "Question: {prompt}\nAnswer: {completion}\nIs the answer right? Answer yes or no."
BETTER = (
    "Two pictures were made for this text: {prompt}\n"
    "Is the first picture better than the second with regard to {criterion}? Answer yes or no."
)
BETTER_DONE = (
    "The first {shown} pictures show one attempt in order of time, the others a second attempt: {prompt}\n"
    "Is the first attempt better than the second with regard to {criterion}? Answer yes or no."
)
BETTER_ANSWER = (
    "Question: {prompt}\nFirst answer: {completion}\nSecond answer: {other}\n"
    "Is the first answer better than the second with regard to {criterion}? Answer yes or no."
)


class _Judge(Exhibitor):
    """What both judges share: who is asked, and with which words."""

    fields: tuple[str, ...] = ()

    def __init__(self, question: str | None, asker: Asker | str, frames: int) -> None:
        check_fields(question, self.fields)
        super().__init__(frames)
        self.question = question
        self.asker: Asker = VLM(asker) if isinstance(asker, str) else asker

    @property
    def families(self) -> frozenset[str]:
        return families_of(self.asker)

    def ask(self, questions: Sequence[Prompt]) -> list[float]:
        """P(yes) of each.

        Raises:
            ValueError: the asker gave another number of answers, or one that is no probability.
        """
        answers = [float(answer) for answer in self.asker(questions)]
        if len(answers) != len(questions):
            raise ValueError(f"the judge gave {len(answers)} answers to {len(questions)} questions")
        for index, answer in enumerate(answers):
            if not 0 <= answer <= 1:
                raise ValueError(f"the judge's answer to question {index} is {answer:g}, not a probability")
        return answers


class YesNoJudge(_Judge):
    """P(yes) of one question about each output, in 0..1.

    Args:
        question: with the fields {prompt} and {completion} (the output, where it is a text). By default the question
            is whether a picture shows the prompt, an episode does it, or an answer is right.
        asker: who is asked: a model's name, a ``VLM``, or any function like it.
        frames: how many frames of an episode are shown.
    """

    fields = ("prompt", "completion")
    minimum = 0.0

    def __init__(self, question: str | None = None, *, asker: Asker | str = QWEN, frames: int = 4) -> None:
        super().__init__(question, asker, frames)

    def __call__(
        self,
        images: Sequence[Any] | Tensor | None = None,
        prompts: Sequence[Any] = (),
        completions: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One score per sample.

        Args:
            images: of each task, the pictures that it shows; without completions the pictures that were made.
            prompts: texts, or chats whose last message counts.
            completions: texts, pictures or episodes.

        Raises:
            ValueError: an output that is neither text nor picture; the line names the sample.
        """
        exhibits = self.exhibits(images, completions)
        texts = texts_of(prompts, len(exhibits))
        return self.ask([self._question(exhibit, text) for exhibit, text in zip(exhibits, texts, strict=True)])

    def _question(self, exhibit: Exhibit, prompt: str) -> Prompt:
        default = RIGHT if exhibit.text is not None else DONE if len(exhibit.pictures) > 1 else SHOWS
        text = (self.question or default).format(prompt=prompt, completion=exhibit.text or "")
        return *exhibit.pictures, text


class PairwiseJudge(_Judge):
    """The probability that an output is better than another with regard to one criterion, in cap..1 - cap.

    Each pair is asked about in both orders, and the score is the mean of P(yes) in the first and P(no) in the
    second: a judge who always prefers what comes first gives 0.5. The idea of one judge for many criteria, told in
    the question, is OneReward's (arXiv 2508.21066; not checked); asking in both orders is this project's. So is the
    lower cap; above, OneReward's loss max(0, l - P(yes)) is l - min(P(yes), l) with l = 1 - cap, this score's upper
    end. OneReward takes the gradient through the judge; this score has none.

    Args:
        criterion: what is compared, such as "sharpness" or "agreement with the text".
        against: "references" compares with the task's reference, an output of the same kind; None for those
            without one. "group" compares each output with its neighbours in the ring of its group, in the order
            given, so that every output is asked about with at most two others and a group's mean is 0.5; None for
            an output that is alone.
        question: with the fields {prompt}, {criterion}, {completion} and {other} (the two texts, where the outputs
            are texts) and {shown} (how many pictures belong to the first).
        asker, frames: as in ``YesNoJudge``.
        cap: a pair's probability is kept in cap..1 - cap, so that a sure judge does not drown the other terms.
    """

    fields = ("prompt", "criterion", "completion", "other", "shown")

    def __init__(
        self,
        criterion: str,
        *,
        against: Literal["references", "group"] = "references",
        question: str | None = None,
        asker: Asker | str = QWEN,
        frames: int = 4,
        cap: float = 0.05,
    ) -> None:
        super().__init__(question, asker, frames)
        if against not in ("references", "group"):
            raise unknown("opponent of a pairwise judge", against, ("references", "group"))
        if not 0 <= cap < 0.5:
            raise ValueError(f"the cap is {cap:g}, not in 0..0.5")
        self.criterion = criterion
        self.against = against
        self.cap = self.minimum = cap

    def __call__(
        self,
        images: Sequence[Any] | Tensor | None = None,
        prompts: Sequence[Any] = (),
        completions: Sequence[Any] | None = None,
        references: Sequence[Any] | None = None,
        groups: Sequence[str] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One score per sample.

        Args:
            images, prompts, completions: as in ``YesNoJudge``.
            references: what to compare with, when against is "references".
            groups: names of the groups, when against is "group".

        Raises:
            ValueError: the column to compare with is missing, or a text is to be compared with a picture.
        """
        exhibits = self.exhibits(images, completions)
        texts = texts_of(prompts, len(exhibits))
        if self.against == "group":
            return self._within(exhibits, texts, groups)
        if references is None:
            raise ValueError('a pairwise judge needs the column references, or against="group"')
        having = [i for i, reference in enumerate(references) if reference is not None]
        others = {i: self._opponent(i, exhibits[i], references[i]) for i in having}
        won = self.compare([(exhibits[i], others[i], texts[i]) for i in having])
        scores: list[float | None] = [None] * len(exhibits)
        for i, probability in zip(having, won, strict=True):
            scores[i] = probability
        return scores

    def compare(self, pairs: Sequence[tuple[Exhibit, Exhibit, str]]) -> list[float]:
        """The probability that the first of each pair is better, whatever the judge thinks of places."""
        forward = [self._question(first, second, prompt) for first, second, prompt in pairs]
        swapped = [self._question(second, first, prompt) for first, second, prompt in pairs]
        answers = self.ask([*forward, *swapped]) if pairs else []
        both = zip(answers[: len(pairs)], answers[len(pairs) :], strict=True)
        return [min(max((yes + 1 - no) / 2, self.cap), 1 - self.cap) for yes, no in both]

    def _within(
        self, exhibits: Sequence[Exhibit], prompts: Sequence[str], groups: Sequence[str] | None
    ) -> list[float | None]:
        if groups is None:
            raise ValueError("a pairwise judge within groups needs the column groups")
        pairs = []
        for ring in rows_by_key(groups).values():
            pairs += [
                (ring[k], ring[(k + 1) % len(ring)]) for k in range(len(ring) if len(ring) > 2 else len(ring) - 1)
            ]
        won = self.compare([(exhibits[i], exhibits[j], prompts[i]) for i, j in pairs])
        found: list[list[float]] = [[] for _ in exhibits]
        for (i, j), probability in zip(pairs, won, strict=True):
            found[i].append(probability)
            found[j].append(1 - probability)
        return [math.fsum(some) / len(some) if some else None for some in found]

    def _opponent(self, index: int, exhibit: Exhibit, reference: Any) -> Exhibit:
        if is_text(reference) != (exhibit.text is not None):
            kinds = ["a picture", "a text"]
            said = f"{kinds[exhibit.text is not None]}, its reference {kinds[is_text(reference)]}"
            raise ValueError(f"sample {index} is {said}: they cannot be compared")
        if is_text(reference):
            return Exhibit(exhibit.pictures, text_of(reference))
        return Exhibit(self.pictures(index, reference))

    def _question(self, first: Exhibit, second: Exhibit, prompt: str) -> Prompt:
        answers = first.text is not None
        default = BETTER_ANSWER if answers else BETTER_DONE if len(first.pictures) > 1 else BETTER
        text = (self.question or default).format(
            prompt=prompt,
            criterion=self.criterion,
            completion=first.text or "",
            other=second.text or "",
            shown=len(first.pictures),
        )
        # Two answers are about the same pictures.
        return *first.pictures, *(() if answers else second.pictures), text
