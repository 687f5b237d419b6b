"""Verifiers: is the answer right? 1.0 for the reference itself, 0.0 for a wrong answer or none.

    reward = Reward(Numeric(relative=0.01)) + 0.1 * Reward(Format())

A verifier reads the answer of a completion (a text, or a chat whose last message counts) by :func:`.answers.answer_of`
and compares it with the column ``references``; None where a task has no reference. A reference may be written as an
answer alone or as a text that gives one ("... #### 72"). Who gives several answers, or denies one, has given none. The
tables in the docstrings are tests: a reference, what is right for it and what is wrong.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

from ...errors import UsageError
from ...families import GROUND_TRUTH
from ..models.exhibits import is_text, text_of
from .answers import Extract, answer_of, normalise, without_thoughts
from .mathematics import equal
from .quantities import LIMITS, Quantity, near, numbers_in, plain, quantity_of


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

    def check(self, reference: Any, row: Mapping[str, Any]) -> None:
        """Refuse a reference that cannot be read, before anything runs. Raises ValueError."""
        self.golds(reference)

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
    r"""1.0 if the answer is the reference, whatever its spelling (:func:`.answers.normalise`).

    Case, space, quotes, hyphens, a full stop and an article before it do not matter. A reference that is a list holds
    all answers that are right; of a number, every way to write it is, and of a truth value yes or no too.

    Table:
        red ball     right  `red ball`, `A red ball.`, `Answer: **Red Ball**`, `\boxed{\text{red ball}}`
        red ball     wrong  `ball`, `red or blue ball`, `not red ball`, `<think>red ball</think>`, ``
    """

    def right(self, answer: str, reference: Any, row: Mapping[str, Any]) -> float:
        several = isinstance(reference, (list, tuple, set, frozenset)) and not is_text(reference)
        return float(any(self._is(answer, one) for one in (reference if several else [reference])))

    def check(self, reference: Any, row: Mapping[str, Any]) -> None:
        several = isinstance(reference, (list, tuple, set, frozenset)) and not is_text(reference)
        for one in reference if several else [reference]:
            self.golds(one)

    def _is(self, answer: str, reference: Any) -> bool:
        said = normalise(answer)
        if isinstance(reference, bool):
            return said in (("yes", "true") if reference else ("no", "false"))
        if said in {normalise(gold) for gold in self.golds(reference)}:
            return True
        if not isinstance(reference, (int, float)) or not math.isfinite(reference):
            return False
        found = plain(said)
        return found is not None and found.values == (Fraction(str(reference)),)


class Numeric(Verifier):
    r"""1.0 if the answer gives one number, and that is the reference, within a tolerance.

    |answer - reference| ≤ max(tolerance, relative · |reference|), exactly where both are 0 (3/10 is 0.3; of roots and
    the like fifty digits are compared). Decimals, thousands, fractions, powers, roots, pi and LaTeX are understood;
    what is followed by a percent sign may mean the number or its hundredth: 50% is right for 50, 0.5 and 50%. A task
    that is not worked out ("3 + 4") is no answer. See :func:`.quantities.quantity_of` for what a text gives.

    Args:
        tolerance: in the units of the reference.
        relative: as a share of the reference.
        extract: as for every verifier; by default equations are left whole, so that both sides can be compared.

    Table:
        7            right  `7`, `7.0`, `x = 7`, `7 = 3 + 4`, `So 3 + 4 = 7.`, `\boxed{7}`, `7 apples`, `14/2 = 7`
        7            wrong  `5 or 7`, `1 2 3 4 5 6 7`, `between 5 and 7`, `not 7`, `> 7`, `3 + 4`, `7x`, `7:00`, `-7`
        1234.5       right  `1,234.50`, `$1{,}234.5$`, `12345/10`, `1.2345e3`
        1234.5       wrong  `1.234,50`, `1234`, `1,234 or 1,234.5`
        5\sqrt{3}    right  `5\sqrt3`, `5*sqrt(3)`, `\sqrt{75}`, `5√3`
        5\sqrt{3}    wrong  `5`, `3`, `5\sqrt{2}`, `8.66`
    """

    def __init__(
        self,
        tolerance: float = 0.0,
        relative: float = 0.0,
        extract: Extract = partial(answer_of, equations=False),  # noqa: B008
    ) -> None:
        super().__init__(extract)
        if not (tolerance >= 0 and relative >= 0):
            raise UsageError(f"a tolerance is not negative: got {tolerance:g} and relative {relative:g}")
        self.tolerance, self.relative = tolerance, relative

    def right(self, answer: str, reference: Any, row: Mapping[str, Any]) -> float:
        gold, said = self._gold(reference), quantity_of(answer)
        return float(
            said is not None
            and said.worked_out
            and any(near(a, b, self.tolerance, self.relative) for a in said.values for b in gold.values)
        )

    def check(self, reference: Any, row: Mapping[str, Any]) -> None:
        self._gold(reference)

    def _gold(self, reference: Any) -> Quantity:
        *_, gold = self.golds(reference)
        found = quantity_of(gold)
        if found is not None:
            return found
        raise ValueError(
            f'the reference "{reference}" is not one number: rewards for other answers are exact, set and math'
            if numbers_in(gold)
            else f'the reference "{reference}" holds no number'
        )


class Mathematics(Verifier):
    r"""1.0 if the answer equals the reference as mathematics, by math-verify: expressions, sets, intervals, equations.

    Where the reference is one number, it is compared as by :class:`Numeric` without tolerance. Equal forms are equal:
    for "expand (x + 1)^2" the task itself is a right answer, so ask for what has to be worked out.

    Table:
        x^2+1        right  `x^2 + 1`, `1 + x^2`, `\boxed{x^2+1}`, `The answer is $x^2 + 1$.`
        x^2+1        wrong  `x^2`, `1`, `x^2 + 1, x^2`, `not x^2+1`, ``
        \{1, 2\}     right  `\{2, 1\}`, `\boxed{\{1,2\}}`
        \{1, 2\}     wrong  `1`, `\{1, 2, 3\}`
        [0, 1)       right  `[0,1)`
        [0, 1)       wrong  `[0,1]`, `(0,1)`
        \frac{1}{2}  right  `1/2`, `0.5`
        \frac{1}{2}  wrong  `1/2 or 1/3`, `2`
    """

    def __init__(self, extract: Extract = partial(answer_of, equations=False)) -> None:  # noqa: B008
        super().__init__(extract)
        self._number = Numeric(extract=extract)

    def right(self, answer: str, reference: Any, row: Mapping[str, Any]) -> float:
        *_, gold = self.golds(reference)
        if quantity_of(gold) is not None:
            return self._number.right(answer, reference, row)
        if LIMITS.search(answer):
            return 0.0
        parts = [next(filter(None, found)) for found in _SET_APART.findall(answer)]
        same = equal(_bare(parts[0] if len(parts) == 1 else answer), _bare(gold))
        if same is None:
            raise ValueError(f'the reference "{reference}" is no mathematics that can be read')
        return float(same)

    def check(self, reference: Any, row: Mapping[str, Any]) -> None:
        self.right("", reference, row)


_SET_APART = re.compile(r"\$([^$]+)\$|\\\(((?:(?!\\\)).)*)\\\)|\\\[((?:(?!\\\]).)*)\\\]", re.DOTALL)


def _bare(text: str) -> str:
    return text.strip().strip("$").rstrip(".").strip()[:500]


_DENIED = re.compile(
    r"\b(?:not|never|neither|nor|no|cannot|wrong|incorrect|false|untrue|except|anything but|other than|rather than"
    r"|instead of|ruled? out|eliminated?|excluded?|unlikely|impossible|or)\b|n['\u2019]t\b",
    re.IGNORECASE,
)
_BECAUSE = re.compile(r"\b(?:because|since)\b", re.IGNORECASE)


class Choice(Verifier):
    """1.0 if the answer names the right option and no other, by its letter or its text.

    "B", "(b)", "B. blue", "blue" and "It is blue" name one option, "A or B or C" three: it scores 0, and so does what
    denies ("It is not B"). What follows "because" is a reason and names none. Alone in an answer, in brackets and after
    "option", a small letter counts too; among words a capital one.

    The column ``options`` holds a list of texts per sample; without it, letters alone are read. A reference is a
    letter, an option's text, or the option's index from 0 (an int). Where an option's text is itself a letter, letters
    are read as letters.

    Args:
        letters: of the options where a sample has no list of them.
        extract: as for every verifier.

    Table:
        B of red, blue, green   right  `B`, `(b)`, `Blue.`, `It is blue`, `B. blue`, `option b`, `B because A is wrong`
        B of red, blue, green   wrong  `A`, `A or B`, `It is not B`, `B is wrong`, `red, blue`, `B. red`, ``
    """

    reads = ("options",)

    def __init__(self, letters: str = "ABCDE", extract: Extract = answer_of) -> None:
        super().__init__(extract)
        self.letters = letters

    def right(self, answer: str, reference: Any, row: Mapping[str, Any]) -> float:
        letters, options = self._options(row)
        return float(_named(answer, letters, options) == {self._gold(reference, letters, options)})

    def check(self, reference: Any, row: Mapping[str, Any]) -> None:
        self._gold(reference, *self._options(row))

    def _options(self, row: Mapping[str, Any]) -> tuple[str, list[str]]:
        options = [normalise(str(option)) for option in row.get("options") or ()]
        letters = "".join(chr(ord("A") + k) for k in range(len(options))) if options else self.letters
        if len(letters) > 26:
            raise ValueError(f"{len(options)} options have no letters")
        return letters, options

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
    """The letters of all options that an answer names; none if it denies."""
    bare = normalise(answer)
    alone = re.fullmatch(r"[(\[]?([a-z])[)\].:]*", bare)
    if alone and alone[1].upper() in letters:
        return {alone[1].upper()}
    if bare in options:
        return {letters[options.index(bare)]}
    # The longest first, and each mention once: "dark red" is not "red".
    longest = sorted((option for option in set(options) if len(option) > 1), key=len, reverse=True)
    mention = re.compile("|".join(rf"(?<!\w){re.escape(option)}(?!\w)" for option in longest) or "(?!)")
    part = _BECAUSE.split(answer, maxsplit=1)[0]
    naming = part if _letters(part, letters) or mention.search(normalise(part)) else answer
    rest = mention.sub(" ", " ".join(naming.casefold().split()))
    named = _letters(naming, letters) | {letters[options.index(found)] for found in mention.findall(normalise(naming))}
    word = re.match(r"(yes|no|true|false)\b", bare)
    if word and word[1] in options and named == {letters[options.index(word[1])]}:
        return named  # "No, it is not"
    return set() if _DENIED.search(rest) else named


def _letters(text: str, letters: str) -> set[str]:
    small = re.findall(r"\(([a-z])\)|\b(?:option|choice|letter) \(?([a-z])(?![\w'])", text)
    named = {letter for letter in re.findall(r"(?<![\w'])[A-Z](?![\w'])", text) if letter in letters}
    for article in {"A", "I"} & named:  # "A dog", "I think": words, not letters
        word = rf"(?<![\w']){article} (?!(?:is|was|or|and|but|because|not|nor)\b)[a-z]"
        if not re.search(rf"(?<![\w']){article}(?![\w'])", re.sub(word, "", text)):
            named.discard(article)
    return named | {letter.upper() for pair in small for letter in pair if letter and letter.upper() in letters}


class SetMatch(Verifier):
    r"""How well a list of answers matches the reference's, without regard to order and spelling.

    Items are separated by commas, semicolons, line ends, "&" or "and" outside of brackets; bullets and brackets around
    the list are ignored, and what stands in brackets is one item: "(1,2), (3,4)" are two pairs. Repetition counts where
    the reference repeats. "none" and "[]" are the empty list. Items of a reference are separated in the same way, so
    that the reference scores 1.0; a list in it is one item.

    Args:
        partial: the F1 of the two sets; False: 1.0 if they are equal, else 0.0.
        extract: as for every verifier; by default a list may go on over several lines.

    Table:
        red, blue       right  `blue, red`, `- red\n- blue`, `red and blue`, `[red, blue]`, `The red; the BLUE.`
        red, blue       wrong  `red`, `red, blue, green`, `red or blue`, `not red, blue`, `redblue`, ``
        (1,2), (3,4)    right  `(3, 4), (1, 2)`, `\{(1,2),(3,4)\}`, `[[1,2],[3,4]]`
        (1,2), (3,4)    wrong  `(1,3), (2,4)`, `1, 2, 3, 4`, `(2,1), (3,4)`
        1, 2, 2         right  `2, 1, 2`
        1, 2, 2         wrong  `1, 2`
    """

    def __init__(self, partial: bool = True, extract: Extract = partial(answer_of, lines=True)) -> None:  # noqa: B008
        super().__init__(extract)
        self.partial = partial

    def right(self, answer: str, reference: Any, row: Mapping[str, Any]) -> float:
        said = Counter(_items(answer))
        if isinstance(reference, (list, tuple, set, frozenset)) and not is_text(reference):
            golds = [Counter(item for one in reference for item in self._of(one))]
        else:
            golds = [Counter(_items(gold)) for gold in self.golds(reference)]
        return max(self._score(said, gold) for gold in golds)

    def check(self, reference: Any, row: Mapping[str, Any]) -> None:
        if isinstance(reference, str):
            self.golds(reference)

    def _of(self, one: Any) -> list[str]:
        if isinstance(one, (list, tuple)):
            return [_item(f"({', '.join(map(str, one))})")]
        return _items(str(one))

    def _score(self, said: Counter[str], gold: Counter[str]) -> float:
        if max(gold.values(), default=0) < 2:
            said = Counter(dict.fromkeys(said, 1))
        if said == gold:
            return 1.0
        return 2 * (said & gold).total() / (said.total() + gold.total()) if self.partial else 0.0


_BULLET = re.compile(r"\s*(?:[-*•·–]|\d{1,3}[.)]|\(?[a-z]\))\s+", re.IGNORECASE)  # noqa: RUF001
_SET_SIGNS = re.compile(r"\\([{}])|\\(?:left|right)(?![a-zA-Z])|\\[,;! ]|\$")
_EMPTY = frozenset({"none", "nothing", "empty", "empty set", "∅", r"\emptyset", r"\varnothing"})
_HEADING = re.compile(r"[^,;\n()\[\]{}]*?(?:\bare\b:?|:)\s+")
_SEPARATOR = re.compile(r"[,;\n]|\band\b|&", re.IGNORECASE)


def _items(text: str) -> list[str]:
    """The items of a list, normalised."""
    text = _SET_SIGNS.sub(lambda found: found[1] or "", text).strip().rstrip(".")
    if heading := _HEADING.match(text):
        text = text[heading.end() :]
    inside = _unwrapped(text)
    items = [_item(part) for part in _parts(inside)]
    return [item for item in items if item and item not in _EMPTY]


def _unwrapped(text: str) -> str:
    """A list without the brackets around all of it."""
    text = text.strip()
    if text[:1] in tuple("([{") and text[-1:] in tuple(")]}") and len(_parts(text)) == 1:
        depth = 0
        for place, letter in enumerate(text):
            depth += (letter in "([{") - (letter in ")]}")
            if depth == 0:
                return text[1:-1] if place == len(text) - 1 else text
    return text


def _parts(text: str) -> list[str]:
    """A text between its separators that stand in no brackets."""
    depth, start, parts = 0, 0, []
    marks = re.compile(rf"{_SEPARATOR.pattern}|[(\[{{)\]}}]", re.IGNORECASE)
    for found in marks.finditer(text):
        if found[0] in tuple("([{"):
            depth += 1
        elif found[0] in tuple(")]}"):
            depth = max(0, depth - 1)
        elif depth == 0:
            parts.append(text[start : found.start()])
            start = found.end()
    return [*parts, text[start:]]


def _item(part: str) -> str:
    bullet = _BULLET.match(part)
    part = (part[bullet.end() :] if bullet else part).strip()
    if part[:1] in tuple("([{") and part[-1:] in tuple(")]}"):
        return (
            f"({', '.join(_item(inner) for inner in _parts(part[1:-1])[:100])})" if "," in part else _item(part[1:-1])
        )
    said = normalise(part)
    number = plain(said)
    return said if number is None or len(number.values) > 1 else str(number.values[0])


Box = tuple[float, float, float, float]
_GROUP = re.compile(r"[\[(]([^\[\]()]*)[\])]")
_COORDINATE = re.compile(r"[+-]?(?:\d{1,9}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][+-]?\d{1,2})?")


def boxes_of(text: str) -> list[Box]:
    """The boxes in a text, in their order: four numbers in brackets, or two points (x, y), (x, y) one after the other.

    Numbers are separated by commas or space; any other count of numbers in brackets is no box.
    """
    found: list[Box] = []
    point: tuple[int, list[float]] | None = None
    for group in _GROUP.finditer(text):
        words = group[1].replace(",", " ").split()
        numbers = [float(word) for word in words[:5] if _COORDINATE.fullmatch(word)]
        after = point is not None and not text[point[0] : group.start()].strip(" \t\n,;[(])")
        if len(numbers) == len(words) == 2 and point is not None and after:
            found.append((point[1][0], point[1][1], numbers[0], numbers[1]))
            point = None
        elif len(numbers) == len(words) == 2:
            point = (group.end(), numbers)
        else:
            point = None
            if len(numbers) == len(words) == 4:
                found.append((numbers[0], numbers[1], numbers[2], numbers[3]))
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
    completions use; or a mapping with them under "bbox_2d", "bbox" or "box".

    Table:
        [0, 0, 4, 4]    right  `[0, 0, 4, 4]`, `(0,0),(4,4)`, `[[0, 0], [4, 4]]`, `{"bbox_2d": [0, 0, 4, 4]}`
        [0, 0, 4, 4]    wrong  `[4, 4, 0, 0]`, `[0, 0, 4, 4, 8, 8]`, `0, 0, 4, 4`, `<think>[0, 0, 4, 4]</think>`, ``

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

        gold = self._gold(reference)
        said = [self._corners(box) for box in boxes_of(answer)[:1000]]
        if not said:
            return 0.0
        gains = [[box_iou(a, b) for b in gold] for a in said]
        if self.threshold is not None:
            gains = [[float(gain >= self.threshold) for gain in row] for row in gains]
        rows, columns = linear_sum_assignment(gains, maximize=True)
        matched = math.fsum(gains[i][j] for i, j in zip(rows, columns, strict=True))
        return matched / max(len(said), len(gold))

    def check(self, reference: Any, row: Mapping[str, Any]) -> None:
        self._gold(reference)

    def _gold(self, reference: Any) -> list[Box]:
        gold = [self._corners(box) for box in _given_boxes(reference)]
        if not gold or any(box_iou(box, box) == 0 for box in gold):
            raise ValueError(f'the reference "{reference}" holds a box without area, or none')
        return gold

    def _corners(self, box: Box) -> Box:
        a, b, c, d = box
        return (a, b, a + c, b + d) if self.form == "xywh" else box


def _tagged_or_whole(text: str) -> str | None:
    text = without_thoughts(text)
    tagged = re.findall(r"<answer>((?:(?!<answer>).)*)</answer>", text, re.DOTALL | re.IGNORECASE)
    return tagged[-1] if tagged else text


def _given_boxes(reference: Any) -> list[Box]:
    if isinstance(reference, str):
        return boxes_of(reference)
    if isinstance(reference, Mapping):
        reference = next((reference[name] for name in ("bbox_2d", "bbox", "box") if name in reference), ())
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
            <think>...</think> and then one <answer>...</answer>, each once and nothing else. <think> itself may be
            missing, since some templates write it into the prompt; an answer is not empty.
    """

    families = frozenset({"format"})

    def __init__(self, pattern: str | None = None) -> None:
        inside = r"((?!</?(think|answer)>).)*"
        self.pattern = (
            rf"(?:<think>)?{inside}</think>\s*<answer>(?!\s*</answer>){inside}</answer>" if pattern is None else pattern
        )
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
