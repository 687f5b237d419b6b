"""Process rewards by Monte Carlo: how often does an attempt still succeed from this step?

    values = MonteCarlo(continue_from, Exact(), n=8)
    reward = Reward(WeakestStep(values, Exact()))

The value of a step is the share of right answers among n continuations of the text up to and with it. A step after
which nothing succeeds is where an attempt went wrong. A learned process reward stands in for :class:`MonteCarlo`
wherever it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...errors import UsageError
from ...families import families_of
from ...types import Task
from ..models.exhibits import text_of

Continue = Callable[[Sequence[Task], Sequence[str], int], Sequence[Sequence[str]]]
"""Tasks, the beginning of an answer to each, and n -> n continuations of each, without the beginning."""

StepValues = Callable[[Sequence[Task], Sequence[Sequence[str]]], Sequence[Sequence[float]]]
"""Tasks and the steps of an attempt at each -> a value in 0..1 for every step."""

Split = Callable[[str], Sequence[str]]
"""An attempt -> its steps, which joined give the attempt again."""


def lines_of(text: str) -> list[str]:
    """A text in lines, each with its end; lines without a letter belong to the line before."""
    steps: list[str] = []
    for line in text.splitlines(keepends=True):
        if steps and not line.strip():
            steps[-1] += line
        else:
            steps.append(line)
    return steps


class MonteCarlo:
    """The value of each step by continuing from it: the share of n continuations that a verifier finds right.

    Beginnings that several attempts at a task share are continued once. The last step is continued too: an attempt
    that has ended goes on with an empty text, if the sampler knows the end.

    Args:
        sampler: continues texts; called once with all beginnings.
        verifier: scores whole attempts by the columns completions, tasks, references and the tasks' extra ones; a
            score of at least 1 is right.
        n: continuations per step.
    """

    def __init__(self, sampler: Continue, verifier: Callable[..., Sequence[Any]], n: int = 8) -> None:
        if n < 1:
            raise UsageError(f"{n} continuations of a step say nothing; at least 1 is needed")
        self.sampler, self.verifier, self.n = sampler, verifier, n

    @property
    def families(self) -> frozenset[str]:
        return families_of(self.sampler, self.verifier)

    def __call__(self, tasks: Sequence[Task], steps: Sequence[Sequence[str]]) -> list[list[float]]:
        """One value in 0..1 per step of each attempt.

        Raises:
            ValueError: the sampler gives another number of continuations.
        """
        places: dict[tuple[str, str], int] = {}
        asked: list[tuple[Task, str]] = []
        paths: list[list[int]] = []
        for task, some in zip(tasks, steps, strict=True):
            path = []
            for end in range(1, len(some) + 1):
                beginning = "".join(some[:end])
                key = (task.id, beginning)
                if key not in places:
                    places[key] = len(asked)
                    asked.append((task, beginning))
                path.append(places[key])
            paths.append(path)
        values = self._values([task for task, _ in asked], [beginning for _, beginning in asked]) if asked else []
        return [[values[place] for place in path] for path in paths]

    def _values(self, tasks: Sequence[Task], beginnings: Sequence[str]) -> list[float]:
        continued = self.sampler(tasks, beginnings, self.n)
        if len(continued) != len(tasks) or any(len(some) != self.n for some in continued):
            raise ValueError(f"the sampler did not give {self.n} continuations for each of {len(tasks)} beginnings")
        whole = [beginning + end for beginning, some in zip(beginnings, continued, strict=True) for end in some]
        right = _right(self.verifier, [task for task in tasks for _ in range(self.n)], whole)
        return [sum(right[row * self.n : (row + 1) * self.n]) / self.n for row in range(len(tasks))]


def _right(verifier: Callable[..., Sequence[Any]], tasks: Sequence[Task], completions: Sequence[str]) -> list[bool]:
    extra = dict.fromkeys(name for task in tasks for name in task.extra)
    columns: dict[str, Any] = {name: [task.extra.get(name) for task in tasks] for name in extra}
    columns |= {"tasks": tasks, "prompts": [task.prompt for task in tasks], "completions": completions}
    scores = verifier(**columns, references=[task.reference for task in tasks])
    return [score is not None and float(score) >= 1 for score in scores]


class WeakestStep:
    """1[the answer is right] · min over steps of their values (MSTaR, arXiv 2412.17451; not checked).

    Steps of wrong attempts are not valued, since nothing depends on them. None where the verifier does not apply; an
    attempt without steps has the value 1.

    Args:
        values: of the steps, in 0..1.
        verifier: as for :class:`MonteCarlo`; None values every attempt, right or not.
        split: an attempt into steps.
    """

    def __init__(
        self, values: StepValues, verifier: Callable[..., Sequence[Any]] | None = None, split: Split = lines_of
    ) -> None:
        self.values, self.verifier, self.split = values, verifier, split

    @property
    def families(self) -> frozenset[str]:
        return families_of(self.values) if self.verifier is None else families_of(self.values, self.verifier)

    def __call__(self, completions: Sequence[Any], tasks: Sequence[Task], **columns: Any) -> list[float | None]:
        """One score per sample, in 0..1."""
        texts = [text_of(completion) for completion in completions]
        scores: list[float | None] = [1.0] * len(texts)
        if self.verifier is not None:
            said = self.verifier(completions=completions, tasks=tasks, **columns)
            scores = [None if score is None else float(float(score) >= 1) for score in said]
        rows = [row for row, score in enumerate(scores) if score]
        valued = self.values([tasks[row] for row in rows], [list(self.split(texts[row])) for row in rows])
        for row, values in zip(rows, valued, strict=True):
            scores[row] = min(values, default=1.0)
        return scores
