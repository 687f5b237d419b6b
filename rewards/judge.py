"""A vision-language model as judge: the probability that it says yes.

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
from functools import cached_property
from string import Formatter
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from ..errors import UsageError, unknown
from .exhibits import Exhibit, Exhibitor, Question, is_text, text_of, texts_of
from .weights import loading

Asker = Callable[[Sequence[Question]], Sequence[float] | Tensor]
"""Questions, each with the pictures shown before it -> P(yes) of each, in 0..1."""

QWEN = "Qwen/Qwen2.5-VL-7B-Instruct"
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


def load_vlm(name_or_path: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """An image-text-to-text model of transformers, frozen, and its processor.

    Raises:
        UsageError: it cannot be loaded.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    auto: Any = AutoProcessor
    with loading(name_or_path):
        processor = auto.from_pretrained(name_or_path)
        model: Any = AutoModelForImageTextToText.from_pretrained(name_or_path, dtype=dtype)
    return model.to(device).requires_grad_(False), processor


class VLMAsker:
    """P(yes) / (P(yes) + P(no)) of the first token that a vision-language model would answer.

    "yes" counts in every spelling that is one token of the model ("yes", "Yes", "YES", each with and without a
    space before it), and likewise "no". Loading happens at the first question. A model that is given is put into
    eval mode for the time of asking only, so that a policy can judge itself.

    Args:
        name_or_path: any image-text-to-text model of transformers, with a chat template.
        model, processor: loaded ones instead.
        device, dtype: of a model that is loaded by name.
        batch_size: questions per forward pass. Their padding does not change the answers beyond rounding.

    Raises:
        UsageError: the model cannot be loaded, or splits every spelling of "yes" or of "no" into several tokens.
    """

    def __init__(
        self,
        name_or_path: str = QWEN,
        *,
        model: Any = None,
        processor: Any = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 8,
    ) -> None:
        if (model is None) != (processor is None):
            raise UsageError("a judge needs model and processor together, or a name to load both from")
        self.name_or_path = name_or_path
        self.given = None if model is None else (model, processor)
        self.device = torch.device(device)
        self.dtype = dtype
        self.batch_size = batch_size

    def __call__(self, questions: Sequence[Question]) -> Tensor:
        """[N] in 0..1, float32, on the CPU."""
        answers = torch.empty(len(questions))
        # Processors batch questions with pictures and questions without, but not both.
        for pictured in (True, False):
            rows = [i for i, (pictures, _) in enumerate(questions) if bool(pictures) == pictured]
            for start in range(0, len(rows), self.batch_size):
                some = rows[start : start + self.batch_size]
                answers[some] = self._ask([questions[i] for i in some])
        return answers

    @cached_property
    def parts(self) -> tuple[Any, Any, Tensor, Tensor]:
        """Model, processor and the tokens of yes and no."""
        model, processor = self.given or load_vlm(self.name_or_path, self.device, self.dtype)
        tokenizer = getattr(processor, "tokenizer", processor)
        return model, processor, *(tokens_of(tokenizer, word) for word in ("yes", "no"))

    @torch.no_grad()
    def _ask(self, questions: Sequence[Question]) -> Tensor:
        model, processor, yes, no = self.parts
        inputs = processor.apply_chat_template(
            [_conversation(pictures, text) for pictures, text in questions],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            sanitize_control_tokens=True,
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        inputs = {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}
        training = model.training
        model.eval()
        try:
            logits: Tensor = model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float().cpu()
        finally:
            model.train(training)
        return (logits[:, yes].logsumexp(-1) - logits[:, no].logsumexp(-1)).sigmoid()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "parts"}


def _conversation(pictures: Sequence[Image.Image], text: str) -> list[dict[str, Any]]:
    shown = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def tokens_of(tokenizer: Any, word: str) -> Tensor:
    """The ids of every spelling of a word that is one token.

    Raises:
        UsageError: there is none.
    """
    spellings = [space + form for form in (word.lower(), word.capitalize(), word.upper()) for space in ("", " ")]
    encoded = [tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings]
    ids = {ids[0] for ids in encoded if len(ids) == 1} - {tokenizer.unk_token_id}
    if not ids:
        raise UsageError(
            f'the tokenizer {type(tokenizer).__name__} splits "{word}" in every spelling, so that its first token '
            "says nothing; take another model"
        )
    return torch.tensor(sorted(ids))


class _Judge(Exhibitor):
    """What both judges share: who is asked, and with which words."""

    fields: tuple[str, ...] = ()

    def __init__(self, question: str | None, asker: Asker | str, frames: int) -> None:
        for _, name, _, _ in Formatter().parse(question or ""):
            if name is not None and name not in self.fields:
                raise unknown("field of a judge's question", name, self.fields)
        super().__init__(frames)
        self.question = question
        self.asker: Asker = VLMAsker(asker) if isinstance(asker, str) else asker

    def ask(self, questions: Sequence[Question]) -> list[float]:
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
        asker: who is asked: a model's name, a ``VLMAsker``, or any function like it.
        frames: how many frames of an episode are shown.
    """

    fields = ("prompt", "completion")

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
            images: pictures that were made; or, with texts as completions, the pictures that they are about.
            prompts: texts, or chats whose last message counts.
            completions: texts, pictures or episodes.

        Raises:
            ValueError: an output that is neither text nor picture; the line names the sample.
        """
        exhibits = self.exhibits(images, completions)
        texts = texts_of(prompts, len(exhibits))
        return self.ask([self._question(exhibit, text) for exhibit, text in zip(exhibits, texts, strict=True)])

    def _question(self, exhibit: Exhibit, prompt: str) -> Question:
        default = RIGHT if exhibit.text is not None else DONE if len(exhibit.pictures) > 1 else SHOWS
        text = (self.question or default).format(prompt=prompt, completion=exhibit.text or "")
        return exhibit.pictures, text


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
        self.cap = cap

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
        members: dict[str, list[int]] = {}
        for index, group in enumerate(groups):
            members.setdefault(group, []).append(index)
        pairs = []
        for ring in members.values():
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

    def _question(self, first: Exhibit, second: Exhibit, prompt: str) -> Question:
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
        return (first.pictures if answers else (*first.pictures, *second.pictures)), text
