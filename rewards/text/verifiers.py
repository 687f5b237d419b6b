"""Verifiers: is the answer right? 1.0 for the reference itself, 0.0 for a wrong answer or none.

    reward = Reward(Numeric(relative=0.01)) + 0.1 * Reward(Format())

A verifier reads the answer of a completion (a text, or a chat whose last message counts) by :func:`.answers.answer_of`
and compares it with the column ``references``; None where a task has no reference. A reference may be written as an
answer alone or as a text that gives one ("... #### 72").
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from ...errors import UsageError
from ...families import GROUND_TRUTH
from ..models.exhibits import is_text, text_of
from .answers import Extract, answer_of, normalise

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?:\.[0-9]+|(?<=[0-9]))(?:[eE][+-]?[0-9]+)?"
_QUANTITY = re.compile(
    rf"(?P<sign>(?<![\w)\]}}])[-+])?(?<![\w.^])(?:(?P<whole>[0-9]{{1,9}})[ ](?=[0-9]+[ ]?/[ ]?[0-9]))?"
    rf"(?P<top>{_NUMBER})"
    rf"(?:[ ]?/[ ]?(?P<bottom>{_NUMBER}))?(?P<percent>[ ]?\\?%)?"
)
_LATEX_FRACTION = re.compile(r"(?:([0-9])[ ]*)?\\[dt]?frac\s*\{\s*([^{}]*?)\s*\}\s*\{\s*([^{}]*?)\s*\}")
_LONGEST, _LARGEST_EXPONENT = 300, 200  # beyond, a few letters would be a number that fills the memory


class Verifier:
    """What verifiers share: columns in, answers compared one by one.

    Args:
        extract: reads the answer of a completion, None if it gives none.
    """

    families = frozenset({GROUND_TRUTH})
    needs: tuple[str, ...] = ("references",)
    reads: tuple[str, ...] = ()  # further columns, where they are there

    def __init__(self, extract: Extract = answer_of) -> None:
        self.extract = extract

    def __call__(
        self, completions: Sequence[Any], references: Sequence[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        """One score per sample, None where there is no reference.

        Raises:
            UsageError: the column references is missing, or a reference cannot be read; the line names the sample.
        """
        if references is None:
            raise UsageError(f'{type(self).__name__} needs the column "references"')
        scores: list[float | None] = []
        for index, (completion, reference) in enumerate(zip(completions, references, strict=True)):
            row = {name: column[index] for name, column in columns.items() if name in self.reads}
            try:
                scores.append(None if reference is None else self.compare(text_of(completion), reference, row))
            except ValueError as error:
                raise UsageError(f"sample {index}: {error}") from error
        return scores

    def compare(self, completion: str, reference: Any, row: Mapping[str, Any]) -> float:
        """The score of one completion."""
        answer = self.extract(completion)
        return 0.0 if answer is None else self.right(answer, reference, row)

    def right(self, answer: str, reference: Any, row: Mapping[str, Any]) -> float:
        """The score of an answer. To be written by a verifier."""
        raise NotImplementedError

    def golds(self, reference: Any) -> list[str]:
        """The texts of a reference: as it is written, and the answer that it gives.

        Raises:
            ValueError: it is empty.
        """
        text = text_of(reference) if is_text(reference) else str(reference)
        if not text.strip():
            raise ValueError("the reference is empty")
        answer = self.extract(text)
        return [text] if answer is None else [text, answer]


class Exact(Verifier):
    """1.0 if the answer is the reference, whatever its case, space, quotes and full stop (:func:`.answers.normalise`).

    A reference that is a list holds all answers that are right.
    """

    def right(self, answer: str, reference: Any, row: Mapping[str, Any]) -> float:
        several = isinstance(reference, (list, tuple, set, frozenset)) and not is_text(reference)
        accepted = {normalise(gold) for one in (reference if several else [reference]) for gold in self.golds(one)}
        return float(normalise(answer) in accepted)


def numbers_of(text: str) -> list[tuple[Fraction, bool]]:
    r"""The numbers in a text, exactly, in their order, each with whether a percent sign follows it (value undivided).

    Decimals, exponents, thousands (1,234), fractions (3/4, 1 1/2, \frac{3}{4}) and signs are understood; a hyphen
    after a word, a number or a bracket is no sign. Digits in words (x2), divisions by zero and numbers of more than
    300 digits or beyond 1e200 are none.
    """
    text = text.replace("−", "-").replace("{,}", ",").replace("\\,", "").replace("\\!", "")  # noqa: RUF001
    text = _LATEX_FRACTION.sub(lambda m: f"{m[1]} {m[2]}/{m[3]}" if m[1] else f"{m[2]}/{m[3]}", text)
    found = []
    for match in _QUANTITY.finditer(text):
        top, bottom = _fraction(match["top"]), _fraction(match["bottom"] or "1")
        if top is None or not bottom:
            continue
        value = top / bottom
        if match["whole"]:
            value += int(match["whole"])
        found.append((-value if match["sign"] == "-" else value, bool(match["percent"])))
    return found


def _fraction(written: str) -> Fraction | None:
    mantissa, _, exponent = written.replace(",", "").lower().partition("e")
    if not mantissa or len(mantissa) > _LONGEST or len(exponent) > 4 or abs(int(exponent or 0)) > _LARGEST_EXPONENT:
        return None
    return Fraction(mantissa) * Fraction(10) ** int(exponent or 0)


class Numeric(Verifier):
    """1.0 if the last number of the answer is that of the reference, within a tolerance.

    |answer - reference| ≤ max(tolerance, relative · |reference|), exactly where both are 0 (3/10 is 0.3). What is
    followed by a percent sign may mean the number or its hundredth: 50% is right for 50, 0.5 and 50%.

    Args:
        tolerance: in the units of the reference.
        relative: as a share of the reference.
        extract: as for every verifier.
    """

    def __init__(self, tolerance: float = 0.0, relative: float = 0.0, extract: Extract = answer_of) -> None:
        super().__init__(extract)
        if not (tolerance >= 0 and relative >= 0):
            raise UsageError(f"a tolerance is not negative: got {tolerance:g} and relative {relative:g}")
        self.tolerance, self.relative = tolerance, relative

    def right(self, answer: str, reference: Any, row: Mapping[str, Any]) -> float:
        golds = [reading for gold in self.golds(reference) for reading in _readings(gold)]
        if not golds:
            raise ValueError(f'the reference "{reference}" holds no number')
        return float(any(self._near(said, gold) for said in _readings(answer) for gold in golds))

    def _near(self, said: Fraction, gold: Fraction) -> bool:
        return abs(said - gold) <= max(Fraction(self.tolerance), Fraction(self.relative) * abs(gold))


def _readings(text: str) -> list[Fraction]:
    numbers = numbers_of(text)
    if not numbers:
        return []
    value, percent = numbers[-1]
    return [value, value / 100] if percent else [value]


class Choice(Verifier):
    """1.0 if the answer names the right option and no other, by its letter or its text.

    "B", "(b)", "B. blue", "blue" and "It is blue" name one option, "A or B or C" three: it scores 0. Alone in an
    answer, a small letter counts too; among words a capital one.

    The column ``options`` holds a list of texts per sample; without it, letters alone are read. A reference is a
    letter, an option's text, or the option's index from 0 (an int). Where an option's text is itself a letter, letters
    are read as letters.

    Args:
        letters: of the options where a sample has no list of them.
        extract: as for every verifier.
    """

    reads = ("options",)

    def __init__(self, letters: str = "ABCDE", extract: Extract = answer_of) -> None:
        super().__init__(extract)
        self.letters = letters

    def right(self, answer: str, reference: Any, row: Mapping[str, Any]) -> float:
        options = [normalise(str(option)) for option in row.get("options") or ()]
        letters = "".join(chr(ord("A") + k) for k in range(len(options))) if options else self.letters
        if len(letters) > 26:
            raise ValueError(f"{len(options)} options have no letters")
        gold = self._gold(reference, letters, options)
        return float(_named(answer, letters, options) == {gold})

    def _gold(self, reference: Any, letters: str, options: Sequence[str]) -> str:
        if isinstance(reference, int) and not isinstance(reference, bool):
            if not 0 <= reference < len(letters):
                raise ValueError(f"the reference {reference} is the index of none of {len(letters)} options")
            return letters[reference]
        for gold in self.golds(reference):
            named = _named(gold, letters, options)
            if len(named) == 1:
                return named.pop()
        raise ValueError(f'the reference "{reference}" names not one of the options {", ".join(options or letters)}')


def _named(answer: str, letters: str, options: Sequence[str]) -> set[str]:
    """The letters of all options that an answer names."""
    bare = normalise(answer)
    alone = re.fullmatch(r"[(\[]?([a-z])[)\].:]*", bare)
    if alone and alone[1].upper() in letters:
        return {alone[1].upper()}
    if bare in options:
        return {letters[options.index(bare)]}
    named = {letter for letter in re.findall(r"(?<![\w'])[A-Z](?![\w'])", answer) if letter in letters}
    for article in {"A", "I"} & named:  # "A dog", "I think": words, not letters
        word = rf"(?<![\w']){article} (?!(?:is|was|or|and|but|because|not|nor)\b)[a-z]"
        if not re.search(rf"(?<![\w']){article}(?![\w'])", re.sub(word, "", answer)):
            named.discard(article)
    # The longest first, and each mention once: "dark red" is not "red".
    longest = sorted((option for option in set(options) if option), key=len, reverse=True)
    if longest:
        pattern = "|".join(rf"(?<!\w){re.escape(option)}(?!\w)" for option in longest if len(option) > 1)
        mentions = re.findall(pattern, bare) if pattern else []
        named |= {letters[options.index(mention)] for mention in mentions}
    return named


class SetMatch(Verifier):
    """How well a list of answers matches the reference's, without regard to order, spelling or repetition.

    Items are separated by commas, semicolons, line ends or "and"; brackets around the list are ignored. "none" and
    "[]" are the empty list. Items of a reference are separated in the same way, so that the reference scores 1.0.

    Args:
        partial: the F1 of the two sets; False: 1.0 if they are equal, else 0.0.
        extract: as for every verifier.
    """

    def __init__(self, partial: bool = True, extract: Extract = answer_of) -> None:
        super().__init__(extract)
        self.partial = partial

    def right(self, answer: str, reference: Any, row: Mapping[str, Any]) -> float:
        said = _items(answer)
        if isinstance(reference, (list, tuple, set, frozenset)) and not is_text(reference):
            golds = [{item for one in reference for item in _items(str(one))}]
        else:
            golds = [_items(gold) for gold in self.golds(reference)]
        return max(self._score(said, gold) for gold in golds)

    def _score(self, said: set[str], gold: set[str]) -> float:
        if said == gold:
            return 1.0
        return 2 * len(said & gold) / (len(said) + len(gold)) if self.partial else 0.0


def _items(text: str) -> set[str]:
    parts = (normalise(part.strip().strip("()[]{}")) for part in re.split(r"[,;\n]|\band\b", text))
    return {part for part in parts if part and part not in ("none", "nothing")}


Box = tuple[float, float, float, float]
_COORDINATE = r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*"
_BOX = re.compile(
    rf"[\[(]{_COORDINATE},{_COORDINATE},{_COORDINATE},{_COORDINATE}[\])]"
    rf"|[\[(]{_COORDINATE},{_COORDINATE}[\])]\s*,?\s*[\[(]{_COORDINATE},{_COORDINATE}[\])]"
)


def boxes_of(text: str) -> list[Box]:
    """The boxes in a text: four numbers in brackets, or two points (x, y), (x, y), in their order."""
    found = []
    for match in _BOX.finditer(text):
        a, b, c, d = (float(number) for number in match.groups() if number is not None)
        found.append((a, b, c, d))
    return found


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes (left, top, right, bottom); 0 if either has no area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second) if box[2] > box[0] and box[3] > box[1]]
    if width <= 0 or height <= 0 or len(areas) < 2:
        return 0.0
    return width * height / (areas[0] + areas[1] - width * height)


class BoxIoU(Verifier):
    """How well the boxes of a completion cover those of the reference: Σ IoU of matched pairs / max(said, wanted).

    Pairs are matched one to one so that the sum is largest (Hungarian). A box too many or too few costs its share, so
    that naming many boxes does not pay. Boxes are read from the whole completion, or from its <answer> if it has one.

    A reference is one box of four numbers, a list of such, or a text with them, in the units and the form that
    completions use.

    Args:
        threshold: count each pair 1 if its IoU reaches this, else 0; None adds the IoU itself.
        form: "xyxy" (left, top, right, bottom) or "xywh" (left, top, width, height).
    """

    def __init__(self, threshold: float | None = None, form: str = "xyxy") -> None:
        super().__init__(_tagged_or_whole)
        if threshold is not None and not 0 < threshold <= 1:
            raise UsageError(f"the threshold of an IoU is {threshold:g}, not in 0..1")
        if form not in ("xyxy", "xywh"):
            raise UsageError(f'boxes have the form xyxy or xywh, not "{form}"')
        self.threshold, self.form = threshold, form

    def right(self, answer: str, reference: Any, row: Mapping[str, Any]) -> float:
        from scipy.optimize import linear_sum_assignment

        gold = [self._corners(box) for box in _given_boxes(reference)]
        if not gold or any(box_iou(box, box) == 0 for box in gold):
            raise ValueError(f'the reference "{reference}" holds a box without area, or none')
        said = [self._corners(box) for box in boxes_of(answer)[:1000]]
        if not said:
            return 0.0
        gains = [[box_iou(a, b) for b in gold] for a in said]
        if self.threshold is not None:
            gains = [[float(gain >= self.threshold) for gain in row] for row in gains]
        rows, columns = linear_sum_assignment(gains, maximize=True)
        matched = math.fsum(gains[i][j] for i, j in zip(rows, columns, strict=True))
        return matched / max(len(said), len(gold))

    def _corners(self, box: Box) -> Box:
        a, b, c, d = box
        return (a, b, a + c, b + d) if self.form == "xywh" else box


def _tagged_or_whole(text: str) -> str | None:
    tagged = re.findall(r"<answer>((?:(?!<answer>).)*)</answer>", text, re.DOTALL | re.IGNORECASE)
    return tagged[-1] if tagged else text


def _given_boxes(reference: Any) -> list[Box]:
    if isinstance(reference, str):
        return boxes_of(reference)
    boxes = [reference] if len(reference) and not hasattr(reference[0], "__len__") else reference
    found = []
    for box in boxes:
        if len(box) != 4:
            raise ValueError(f'the reference "{reference}" holds a box that is not four numbers')
        a, b, c, d = (float(number) for number in box)
        found.append((a, b, c, d))
    return found


class Format:
    """1.0 if a completion, without space around it, has a form; nothing is said about what is right.

    Args:
        pattern: a regular expression that the whole text has to match ("." matches line ends too). By default one
            <think>...</think> and then one <answer>...</answer>, each once and nothing else.
    """

    families = frozenset({"format"})

    def __init__(self, pattern: str | None = None) -> None:
        inside = r"((?!</?(think|answer)>).)*"
        self.pattern = rf"<think>{inside}</think>\s*<answer>{inside}</answer>" if pattern is None else pattern
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UsageError(f'"{pattern}" is no regular expression: {error}') from None

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """One score per sample."""
        return [float(re.fullmatch(self.pattern, text_of(text).strip(), re.DOTALL) is not None) for text in completions]


class Truncated:
    """A penalty for completions that ran into the limit of their length; 0.0 for the others.

    It reads ``info["truncated"]`` of the rollouts; None where a rollout does not say.

    Args:
        penalty: the score of a truncated completion.
    """

    families = frozenset({"length"})

    def __init__(self, penalty: float = -1.0) -> None:
        self.penalty = penalty

    def __call__(self, rollouts: Sequence[Any], **columns: Any) -> list[float | None]:
        """One score per sample."""
        said = [rollout.info.get("truncated") for rollout in rollouts]
        return [None if truncated is None else self.penalty * bool(truncated) for truncated in said]
