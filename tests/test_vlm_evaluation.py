"""What is told of a policy that speaks: graded by the verifiers that train it, a few answers at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autotelic.calling import check_references, require_columns
from autotelic.errors import UsageError
from autotelic.families import GROUND_TRUTH, of_family
from autotelic.rewards.names import verifiers
from autotelic.rewards.reward import Reward
from autotelic.rewards.text.code_tests import CodeTests
from autotelic.rewards.text.verifiers import BoxIoU, Choice, Exact, Numeric
from autotelic.types import Rollout, Task
from autotelic.vlm import evaluation
from autotelic.vlm.evaluation import evaluate, sampled
from autotelic.vlm.verification import Verification, told, verification

TASKS = [Task(f"t{i}", "how many ?", reference=i, category="ab"[i % 2]) for i in range(10)]


class Parrot:
    """Says what it is told to, by task and sample; counts the most answers of one call."""

    def __init__(self, says: Any) -> None:
        self.says, self.calls = says, list[int]()

    def act(self, tasks: Sequence[Task], n: int, **how: Any) -> list[Rollout]:
        self.calls.append(len(tasks) * n)
        none = torch.zeros(1)
        return [
            Rollout(task, self.says(task, sample), {}, none, none.bool(), none.long(), info={"truncated": sample == 1})
            for task in tasks
            for sample in range(n)
        ]

    def evaluated(self) -> Any:
        return self

    def bare(self) -> Any:
        return self


def setting(verify: Any, asked: Sequence[Task] = TASKS, **config: Any) -> Any:
    questions = SimpleNamespace(held_out=asked, blind={"a": 0.5, "b": 0.25}, verify=verify, small_world=True)
    return SimpleNamespace(
        questions=questions, verify=verify, config=SimpleNamespace(**{"samples": 0, "sampled_questions": 9, **config})
    )


def test_outcomes_are_those_of_the_verifier_in_any_number_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    def says(task: Task, sample: int) -> str:
        return f"Answer: {task.reference}.0" if task.prompt and task.reference % 3 else "none"

    whole = evaluate(setting(Numeric()), Parrot(says))  # type: ignore[arg-type]
    assert whole["outcomes"] == {
        "a": {"success": [0, 1, 1, 0, 1], "seeds": ["t0", "t2", "t4", "t6", "t8"]},
        "b": {"success": [1, 0, 1, 1, 0], "seeds": ["t1", "t3", "t5", "t7", "t9"]},
    }
    assert whole["unit"] == "accuracy" and whole["notes"][0] == "Graded by Numeric."
    exact = evaluate(setting(Exact()), Parrot(lambda task, sample: f"{says(task, sample)} apples"))  # type: ignore[arg-type]
    assert sum(sum(row["success"]) for row in exact["outcomes"].values()) == 0
    monkeypatch.setattr(evaluation, "CHUNK", 3)
    parrot = Parrot(says)
    assert evaluate(setting(Numeric()), parrot) == whole and parrot.calls == [3, 3, 3, 1]  # type: ignore[arg-type]


def test_what_is_graded_between_right_and_wrong_is_told_as_it_is() -> None:
    boxes = [Task(f"t{i}", "where ?", reference=[0, 0, 10, 10], category="a") for i in range(2)]
    parrot = Parrot(lambda task, sample: "[0, 0, 10, 9]" if task.id == "t0" else "[0, 0, 10, 10]")
    result = evaluate(setting(BoxIoU(), boxes), parrot)  # type: ignore[arg-type]
    assert result["outcomes"]["a"]["success"] == pytest.approx([0.9, 1]) and result["unit"] == "score"


def test_best_and_mean_of_several_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four answers t0's first is right, t2's first three, t4's none: pass@4 2/3, mean@4 1/3."""
    right = {"t0": 1, "t2": 3, "t4": 0}
    parrot = Parrot(lambda task, sample: str(task.reference) if sample < right[task.id] else "x")
    for chunk in (256, 4):
        monkeypatch.setattr(evaluation, "CHUNK", chunk)
        found = sampled(parrot, TASKS[:6:2], 4, 9, Exact())  # type: ignore[arg-type]
        assert found == {"a": pytest.approx((1 / 3, 2 / 3))}
    assert sampled(parrot, TASKS[:6:2], 4, 1, Exact()) == {"a": (0.25, 1.0)}, "the first one alone"  # type: ignore[arg-type]


def test_a_reward_is_told_where_there_is_no_truth_and_none_is_left_out() -> None:
    def brief(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if said == "skip" else -len(said) for said in completions]

    asked = setting(Reward(brief), TASKS[:4])
    asked.questions.verify = None
    result = evaluate(asked, Parrot(lambda task, sample: ["skip", "four", "four", "x"][task.reference]))  # type: ignore[arg-type]
    assert result["unit"] == "reward"
    assert {name: row["success"] for name, row in result["outcomes"].items()} == {"a": [-4], "b": [-4, -1]}


# --- which verifiers ------------------------------------------------------------------------------------------------


def test_the_verifiers_among_rewards_are_known_by_their_families(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from autotelic.families import GROUND_TRUTH, of_family\n"
        "def short(completions, **c): return [0.0] * len(completions)\n"
        "@of_family(GROUND_TRUTH)\n"
        "def right(completions, references, **c): return [1.0] * len(completions)\n"
    )
    mine = str(tmp_path / "mine.py")
    named = verifiers(
        ["format:0.1", f"{mine}:short", "self_yes_no", f"{mine}:right", "numeric:2", "code"], own=["self_yes_no"]
    )
    assert [reward.name for reward in named] == ["right", "numeric", "code"]
    assert [reward.name for reward in verifiers(["exact:-1", "choice:0"])] == ["choice"]
    with pytest.raises(UsageError, match="did you mean exact"):
        verifiers(["exakt"])


def test_a_question_is_graded_by_the_first_verifier_whose_columns_it_has() -> None:
    seen: list[list[str]] = []

    @of_family(GROUND_TRUTH)
    def by_key(completions: list[str], key: list[str], **columns: Any) -> list[float]:
        seen.append(key)
        return [float(k in c) for k, c in zip(key, completions, strict=True)]

    by_key.needs = ("key",)  # type: ignore[attr-defined]
    both = Verification([Reward(by_key), Exact()])
    scores = both(completions=["k1", "4", "k9", "5"], references=[None, "4", "4", None], key=["k1", None, "k2", None])
    assert scores == [1.0, 1.0, 0.0, None] and seen == [["k1", "k2"]]
    assert both(completions=["4"], references=["4"]) == [1.0], "a column that no question has"
    assert both.needs == ("key", "references") and both.name == "by_key, Exact"
    keyed, answered, neither = Task("a", "?", extra={"key": "k"}), Task("b", "?", reference="4"), Task("c", "?")
    assert [both.applies(task) for task in (keyed, answered, neither)] == [True, True, False]
    assert verification([Reward(by_key)], [answered]).name == "Exact"  # type: ignore[union-attr]
    assert verification([Reward(by_key)], [answered, keyed]).name == "by_key"  # type: ignore[union-attr]
    assert verification([], [neither]) is None


def test_answers_that_a_verifier_cannot_read_are_told_before_a_run() -> None:
    check_references(Numeric(), TASKS)
    for verifier, reference, extra, what in (
        (Numeric(), "four", {}, "holds no number"),
        (Reward(Choice(), "choice"), 3, {"options": ["a", "b"]}, "index of none"),
        (BoxIoU(), [0, 0, 0, 0], {}, "without area"),
    ):
        odd = Task("odd", "?", reference=reference, extra=extra)
        fine = Task("fine", "?", reference="1", extra={"options": ["1", "2"]})
        with pytest.raises(UsageError, match=f"odd: .*{what}"):
            check_references(verifier, [fine, odd] if isinstance(verifier, Numeric) else [odd])


def test_tests_of_programs_are_looked_at_where_a_question_has_them() -> None:
    """Beside questions that have an answer and no tests, which are another verifier's."""
    answered, tested = Task("a", "?", reference="4"), Task("t", "?", extra={"tests": ["assert f() == 1"]})
    require_columns(Reward(CodeTests(), "code"), [answered, tested])
    odd = Task("odd", "?", extra={"tests": [{"neither": 1}]})
    with pytest.raises(UsageError, match="reward code, task odd: "):
        require_columns(Reward(CodeTests(), "code"), [answered, odd])


def test_a_right_answer_in_words() -> None:
    def words(reference: Any, **extra: Any) -> str:
        return told(Task("t", "?", reference=reference, extra=extra))

    assert [words(r) for r in ("4", 4, 4.5, True, ["four", "4"])] == ["4", "4", "4.5", "true", "four"]
    assert [words([0, 0, 1, 1]), words(1, options=["cat", "dog"]), words(7, options=["cat"])] == [
        "[0, 0, 1, 1]",
        "dog",
        "7",
    ]
