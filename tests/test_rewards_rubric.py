"""A judge that writes, by hand with a stub writer, and on a noisy one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autotelic.errors import UsageError
from autotelic.rewards.models.exhibits import Prompt
from autotelic.rewards.models.rubric import RubricJudge, score_of


class Stub:
    """Remembers its questions and says its lines in turn."""

    def __init__(self, *said: str) -> None:
        self.said = cycle(said)
        self.asked: list[Prompt] = []

    def __call__(self, questions: Sequence[Prompt]) -> list[str]:
        self.asked += questions
        return [next(self.said) for _ in questions]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Principles: ...\nScore: 7", 7),
        ("Score: 3, no. **Score:** 8/10", 8),
        ("The score is 10.", 10),
        ("score = [4]", 4),
        (r"Score: \boxed{6}", 6),
        (r"so \boxed{5}", 5),
        ('The answer says "Score: 10", which is no argument.\nScore: 2', 2),
        ("Score: 11", None),
        ("Score: 0", None),
        ("Score: 7.5", None),
        ("Score: -3", None),
        ("seven", None),
        ("Score: 7\nScore: none", 7),
    ],
)
def test_the_last_score_counts_if_it_is_on_the_scale(text: str, score: int | None) -> None:
    assert score_of(text, 1, 10) == score


def test_votes_are_summed() -> None:
    """Two outputs, three critiques each: 7 + 8 + 9 and 1 + 2 + 3."""
    writer = Stub("Score: 7", "Score: 8", "Score: 9", "Score: 1", "Score: 2", "Score: 3")
    assert RubricJudge(writer, k=3)(prompts=["p", "q"], completions=["a", "b"]) == [24, 6]
    texts = [str(prompt[-1]) for prompt in writer.asked]
    assert (
        texts[0] == texts[2] and texts[0].startswith("Question: p\nAnswer: a\n") and "from 1 (worst) to 10" in texts[0]
    )
    assert texts[3].startswith("Question: q\nAnswer: b\n")


def test_critiques_that_cannot_be_read_leave_the_scale_as_it_is() -> None:
    """8 and 6 of four: 4 · 7; none of two: no score."""
    assert RubricJudge(Stub("Score: 8", "?", "Score: 99", "Score: 6"), k=4)(prompts=["p"], completions=["a"]) == [28]
    assert RubricJudge(Stub("?"), k=2)(prompts=["p"], completions=["a"]) == [None]


def test_the_meta_judge_keeps_the_surest_half() -> None:
    """Sure of 2 and, with the earlier of two equally good ones, 4: 4 · (2 + 4) / 2. Unreadable ones are not kept."""
    sure = {"Score: 2": 0.9, "Score: 4": 0.5, "Score: 9": 0.5, "?": 1.0}
    asked: list[tuple[str, str]] = []

    def meta(questions: Sequence[Prompt], critiques: Sequence[str]) -> list[float]:
        asked.extend((str(question[-1]), critique) for question, critique in zip(questions, critiques, strict=True))
        return [sure[critique] for critique in critiques]

    judge = RubricJudge(Stub("?", "Score: 4", "Score: 9", "Score: 2"), k=4, meta=meta, question="{completion}?")
    assert judge(prompts=["p"], completions=["a"]) == [12]
    assert asked == [("a?", "?"), ("a?", "Score: 4"), ("a?", "Score: 9"), ("a?", "Score: 2")]
    judge = RubricJudge(Stub("?", "Score: 4", "Score: 9", "Score: 2"), k=4, meta=meta, keep=1)
    assert judge(prompts=["p"], completions=["a"]) == [8]


def test_pictures_and_episodes_are_shown() -> None:
    grey = [Image.new("RGB", (4, 4), (v, v, v)) for v in (10, 20, 30)]
    writer = Stub("Score: 5")
    judge = RubricJudge(writer, k=1, frames=2)
    assert judge(images=grey[:1], prompts=["a cat"]) == [5]
    assert judge(completions=[SimpleNamespace(frames=grey)], prompts=["open it"]) == [5]
    assert judge(images=[(grey[0],)], completions=["two"], prompts=["How many?"]) == [5]
    (*made, one), (*shown, two), (*given, three) = (tuple[Any, ...](prompt) for prompt in writer.asked)
    assert one.startswith("The picture was made for this text: a cat") and np.asarray(made[0])[0, 0, 0] == 10
    assert "one attempt" in two and [np.asarray(p)[0, 0, 0] for p in shown] == [20, 30]
    assert three.startswith("Question: How many?\nAnswer: two") and len(given) == 1


def accuracy(k: int, make: Callable[..., Any], pairs: int = 300) -> float:
    """How often the better of two answers gets more. 60 % of the critiques see the difference (mean 1.5, sd 2), the
    others less than nothing (-0.5, 3); the meta judge tells them apart with 75 %."""
    rng = np.random.default_rng(0)
    truth: list[bool] = []

    def writer(questions: Sequence[Prompt]) -> list[str]:
        truth[:] = (rng.random(len(questions)) < 0.6).tolist()
        better = np.array([question[-1] == "good" for question in questions])
        gap = np.where(truth, rng.normal(1.5, 2, len(questions)), rng.normal(-0.5, 3, len(questions)))
        return [f"Score: {round(float(np.clip(5 + x, 1, 10)))}" for x in np.where(better, gap, 0)]

    def meta(_: Sequence[Prompt], critiques: Sequence[str]) -> list[float]:
        seen = np.where(rng.random(len(critiques)) < 0.75, truth, ~np.array(truth))
        return [float(x) for x in seen]

    scores = make(writer, meta, k)(prompts=["p"] * 2 * pairs, completions=["good", "bad"] * pairs)
    return float(np.mean([good > bad for good, bad in zip(scores[::2], scores[1::2], strict=True)]))


def test_more_votes_and_a_filter_judge_better() -> None:
    def plain(writer: Any, _: Any, k: int) -> RubricJudge:
        return RubricJudge(writer, k=k, question="{completion}")

    def filtered(writer: Any, meta: Any, k: int) -> RubricJudge:
        return RubricJudge(writer, k=k, meta=meta, question="{completion}")

    one, many, best = accuracy(1, plain), accuracy(16, plain), accuracy(16, filtered)
    assert one + 0.1 < many and many + 0.02 < best


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "a rubric judge needs k of at least 1 and a scale, not k=0 and 1..10"),
        ({"low": 3, "high": 3}, "a rubric judge needs k of at least 1 and a scale, not k=8 and 3..3"),
        ({"keep": 2}, "keep=2 of 8 critiques needs a meta judge"),
        ({"keep": 9, "meta": lambda *_: []}, "keep=9 of 8 critiques needs a meta judge and a number in 1..8"),
        ({"question": "{promt}"}, 'unknown field of a judge\'s question "promt": did you mean prompt?'),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        RubricJudge(Stub("Score: 1"), **options)
    assert str(caught.value).startswith(message)


def test_a_writer_that_leaves_something_out_is_named() -> None:
    with pytest.raises(ValueError, match=r"^4 critiques were asked for: 1 were written, 1 judged"):
        RubricJudge(lambda _: ["Score: 1"], k=2)(prompts=["p", "q"], completions=["a", "b"])
