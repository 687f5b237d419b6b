"""What is right, in evaluation and gate: the verifiers that training is rewarded by, where it has any."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..calling import call, has, picked, settled
from ..families import GROUND_TRUTH, name_of, needs_of
from ..returned import scores_of
from ..rewards.text.verifiers import Exact
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
            rows = [
                i for i in range(count) if scores[i] is None and all(c[i] is not None and c[i] != [] for c in needed)
            ]
            if rows:
                table = picked(columns, rows)
                (said,) = settled([partial(call, verifier, table)])
                for row, score in zip(rows, scores_of(name_of(verifier), said, table)["total"], strict=True):
                    scores[row] = score
        return scores


def verification(verifiers: Sequence[Any], tasks: Sequence[Task]) -> Verification | None:
    """Those of some verifiers that apply to a task; ``exact`` where none does and there are answers; else None."""
    applying = [verifier for verifier in verifiers if any(has(task, needs_of(verifier)) for task in tasks)]
    if not applying and any(task.reference is not None for task in tasks):
        applying = [Exact()]
    return Verification(applying) if applying else None


def told(task: Task) -> str:
    """A right answer in words: of several texts the first, of options the one with the reference's index."""
    answer, options = task.reference, task.extra.get("options")
    if isinstance(answer, int) and not isinstance(answer, bool) and isinstance(options, list):
        answer = options[answer] if 0 <= answer < len(options) else answer
    if isinstance(answer, list) and answer and isinstance(answer[0], str):
        answer = answer[0]
    return answer if isinstance(answer, str) else canonical(answer)
