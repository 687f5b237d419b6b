"""What is right, in evaluation and gate: the verifiers that training is rewarded by, where it has any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..families import GROUND_TRUTH, name_of, needs_of
from ..rewards.reward import Reward
from ..rewards.text.verifiers import Exact, Verifier
from ..tables import canonical
from ..types import Score, Task


class Verification:
    """Grades every answer by the first of several verifiers whose columns its question has.

    Args:
        verifiers: rewards or functions of ground truth; an attribute ``needs`` names columns, "references" if absent.
    """

    families = frozenset({GROUND_TRUTH})

    def __init__(self, verifiers: Sequence[Any]) -> None:
        self.verifiers = list(verifiers)
        self.name = ", ".join(name_of(verifier) for verifier in self.verifiers)

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns of which a question has one set."""
        return tuple(dict.fromkeys(name for verifier in self.verifiers for name in needs_of(verifier)))

    def applies(self, task: Task) -> bool:
        """Whether a question has what one of the verifiers needs."""
        return any(has(task, needs_of(verifier)) for verifier in self.verifiers)

    def __call__(self, **columns: Any) -> list[Score]:
        """One score per sample; None where no verifier applies."""
        count = len(columns["completions"])
        scores: list[Score] = [None] * count
        for verifier in self.verifiers:
            needed = [columns.get(name, [None] * count) for name in needs_of(verifier)]
            rows = [i for i in range(count) if scores[i] is None and all(column[i] is not None for column in needed)]
            if rows:
                said = verifier(**{name: [column[i] for i in rows] for name, column in columns.items()})
                total = said.get("total", next(iter(said.values()))) if isinstance(said, Mapping) else said
                for row, score in zip(rows, total, strict=True):
                    scores[row] = score
        return scores


def check_references(verify: Verification, tasks: Sequence[Task]) -> None:
    """Refuse, before a run begins, a right answer that a verifier of texts cannot read.

    Raises:
        UsageError: naming the question and what is wrong with its reference.
    """
    for verifier in verify.verifiers:
        function = verifier.function if isinstance(verifier, Reward) else verifier
        if isinstance(function, Verifier):
            for task in tasks:
                if has(task, needs_of(function)):
                    columns = {name: [value] for name, value in task.extra.items()} | {"references": [task.reference]}
                    try:
                        function(completions=["0"], **columns)
                    except ValueError as error:
                        said = str(error).removeprefix("sample 0: ")
                        raise UsageError(f"{task.id}: {said}, and {name_of(verifier)} asks for it") from error


def verification(verifiers: Sequence[Any], tasks: Sequence[Task]) -> Verification | None:
    """Those of some verifiers that apply to a task; ``exact`` where none does and there are answers; else None."""
    applying = [verifier for verifier in verifiers if any(has(task, needs_of(verifier)) for task in tasks)]
    if not applying and any(task.reference is not None for task in tasks):
        applying = [Exact()]
    return Verification(applying) if applying else None


def has(task: Task, columns: Sequence[str]) -> bool:
    """Whether a question has values in columns."""
    return all((task.reference if name == "references" else task.extra.get(name)) is not None for name in columns)


def told(task: Task) -> str:
    """A right answer in words: of several texts the first, of options the one with the reference's index."""
    answer, options = task.reference, task.extra.get("options")
    if isinstance(answer, int) and not isinstance(answer, bool) and isinstance(options, list):
        answer = options[answer] if 0 <= answer < len(options) else answer
    if isinstance(answer, list) and answer and isinstance(answer[0], str):
        answer = answer[0]
    return answer if isinstance(answer, str) else canonical(answer)
