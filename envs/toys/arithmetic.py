"""Small problems in words and figures whose answers are exact: sums, differences, comparisons, two steps.

Every answer is one whole number of at least 0. A problem belongs to one of three parts by the numbers in it, in any
order and whatever is asked of them: whoever trains on 47 + 25 is not judged on 25 + 47, 47 - 25 or on which of the two
is larger. Drawn by this project; no data set stands behind it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ...errors import UsageError, unknown
from ...types import Task

Part = Literal["train", "probe", "eval"]
"""Learned from; seen by a gate; reported."""

ONLY = "Answer with the number only."
"""Ends every question, so that the last number of an answer is the answer."""

_PROBE, _EVAL = 32, 112  # of 256: an eighth of all compositions for gates, 5/16 for evaluation, the rest for training

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry")
THINGS = ("apples", "books", "coins", "marbles", "pencils", "shells", "stamps", "tickets")


@dataclass(frozen=True)
class Problem:
    """A question and its answer.

    Attributes:
        kind: one of KINDS.
        question: as it is asked.
        answer: the right number.
        numbers: those in the question, which decide the part it belongs to.
    """

    kind: str
    question: str
    answer: int
    numbers: tuple[int, ...]


def part_of(numbers: Sequence[int], split: int = 0) -> Part:
    """Where problems about these numbers belong; another split deals them out anew."""
    key = f"{split} {' '.join(str(n) for n in sorted(numbers))}"
    place = hashlib.blake2b(key.encode(), digest_size=1).digest()[0]
    return "probe" if place < _PROBE else "eval" if place < _EVAL else "train"


def _sum(draw: random.Random) -> Problem:
    a, b = draw.randint(10, 99), draw.randint(10, 99)
    return Problem("sum", f"What is {a} + {b}? {ONLY}", a + b, (a, b))


def _difference(draw: random.Random) -> Problem:
    b, a = sorted((draw.randint(10, 99), draw.randint(10, 99)))
    return Problem("difference", f"What is {a} - {b}? {ONLY}", a - b, (a, b))


def _comparison(draw: random.Random) -> Problem:
    numbers = tuple(draw.sample(range(10, 100), draw.choice((2, 3))))
    listed = f"{', '.join(str(n) for n in numbers[:-1])} or {numbers[-1]}"
    largest = draw.random() < 0.5
    words = ("smaller", "larger") if len(numbers) == 2 else ("the smallest", "the largest")
    question = f"Which number is {words[largest]}: {listed}? {ONLY}"
    return Problem("comparison", question, max(numbers) if largest else min(numbers), numbers)


def _two_steps(draw: random.Random) -> Problem:
    name, other = draw.sample(NAMES, 2)
    things = draw.choice(THINGS)
    a, b, c = draw.randint(20, 80), draw.randint(2, 20), draw.randint(2, 20)
    story = draw.randrange(4)
    if story == 0:
        told = f"{name} has {a} {things}, finds {b} more and gives {c} to {other}. How many {things} has {name} now?"
        return Problem("two_steps", f"{told} {ONLY}", a + b - c, (a, b, c))
    if story == 1:
        told = f"A box holds {a} {things}. {name} takes {b} out, then {other} puts {c} in. How many are in the box?"
        return Problem("two_steps", f"{told} {ONLY}", a - b + c, (a, b, c))
    if story == 2:
        told = f"{name} has {a} {things}. {other} has {b} more than {name}. How many {things} have both together?"
        return Problem("two_steps", f"{told} {ONLY}", 2 * a + b, (a, b))
    told = f"{name} buys {b} bags of {c} {things} and already had {a}. How many {things} has {name} now?"
    return Problem("two_steps", f"{told} {ONLY}", a + b * c, (a, b, c))


KINDS: dict[str, Callable[[random.Random], Problem]] = {
    "sum": _sum,
    "difference": _difference,
    "comparison": _comparison,
    "two_steps": _two_steps,
}
"""How a problem of each kind is drawn."""


def problems(kind: str, count: int, seed: int = 0, *, split: int = 0, part: Part = "eval") -> list[Problem]:
    """Different problems of a kind and part; the same arguments give the same ones, and fewer are a beginning of more.

    Raises:
        UsageError: no such kind, or it has fewer problems in this part.
    """
    if kind not in KINDS:
        raise unknown("kind of problem", kind, KINDS)
    draw = random.Random(f"{kind} {seed} {split} {part}")
    found: dict[str, Problem] = {}
    misses = 0
    while len(found) < count:
        problem = KINDS[kind](draw)
        if problem.question in found or part_of(problem.numbers, split) != part:
            misses += 1
            if misses > 20_000:
                raise UsageError(f"asked for {count} problems of kind {kind} in part {part}: about {len(found)} exist")
        else:
            found[problem.question] = problem
            misses = 0
    return list(found.values())


def tasks(problems: Sequence[Problem]) -> list[Task]:
    """Problems as tasks KIND/QUESTION (equal questions have equal ids); the reference is the answer in figures."""
    return [Task(f"{p.kind}/{p.question}", p.question, reference=str(p.answer), category=p.kind) for p in problems]


def source(kind: str, seed: int = 0, *, split: int = 0) -> Callable[[int], Task]:
    """An endless supply of training tasks, by index; questions may come back.

    Raises:
        UsageError: no such kind.
    """
    if kind not in KINDS:
        raise unknown("kind of problem", kind, KINDS)

    def task(index: int) -> Task:
        draw = random.Random(f"{kind} {seed} {split} train {index}")
        while part_of((problem := KINDS[kind](draw)).numbers, split) != "train":
            pass
        return tasks([problem])[0]

    return task
