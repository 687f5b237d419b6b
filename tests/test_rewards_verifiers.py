"""Verifiers: by hand, on every reference's own text, and on what gets models through a careless check."""

from __future__ import annotations

import math
import pickle
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from autotelic.builtin import REWARDS
from autotelic.calling import require_columns
from autotelic.envs.toys import arithmetic, scenes
from autotelic.errors import UsageError
from autotelic.rewards.names import compose, make_reward
from autotelic.rewards.reward import Reward
from autotelic.rewards.text.answers import answer_of, normalise
from autotelic.rewards.text.code_tests import CodeTests, program_of
from autotelic.rewards.text.digits import Digits
from autotelic.rewards.text.verifiers import (
    BoxIoU,
    Choice,
    Exact,
    Format,
    Mathematics,
    Numeric,
    SetMatch,
    Truncated,
    box_iou,
    boxes_of,
)
from autotelic.sandbox import Limits
from autotelic.trainers.scoring import score
from autotelic.types import Rollout, Task


def rate(verifier: Callable[..., Any], completion: Any, reference: Any, **row: Any) -> float:
    (found,) = verifier(
        completions=[completion], references=[reference], **{name: [value] for name, value in row.items()}
    )
    return float(found)


# Where the answer stands ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{4}, not \boxed{5} = 7", "5"),
        (r"\boxed{\frac{1}{2}} Answer: 3", r"\frac{1}{2}"),
        (r"\boxed{4} and \boxed{5", "4"),
        ("<answer>a</answer> Answer: c <ANSWER> b </ANSWER>", "b"),
        ("<answer>a", "<answer>a"),
        ("48 / 2 = 24\n#### 72\nthat is it", "72"),
        ("Answer: 4. Wait. The answer is **5**.\nDone", "5**."),
        ("**Final answer:**\n42", "42"),
        ("Answer:\n42", "42"),
        ("2 + 2 = 4 = 8 / 2\nthat was it", "8 / 2"),
        ("if a == b", "if a == b"),
        ("p2 p6 = blue_plus", "blue_plus"),
        ("  7 ", "7"),
        ("Answer: ", None),
        (r"\boxed{ }", None),
        (" \n", None),
    ],
)
def test_the_answer_stands_after_the_last_of_the_strongest_marks(text: str, answer: str | None) -> None:
    assert answer_of(text) == answer


def test_a_text_without_a_mark_is_an_answer_only_if_it_may_be() -> None:
    assert answer_of("seven") == "seven" and answer_of("seven", whole=False) is None
    assert answer_of("= 7", whole=False) == "7"


def test_spelling_does_not_matter() -> None:
    for text in (
        "Blue cross",
        " blue  cross.",
        '"BLUE\ncross"',
        "**blue cross**",
        r"$\text{blue cross}$",
        "\uff22lue cross",
    ):
        assert normalise(text) == "blue cross"
    assert normalise("blue_cross") != "blue cross" and normalise("...") == "..."


# The reference's own text is right ------------------------------------------------------------------------------

WRITTEN: list[Callable[[str], str]] = [
    lambda gold: gold,
    lambda gold: f"I look at it closely.\nAnswer: {gold}",
    lambda gold: f"p1 p2 = {gold}",
    lambda gold: rf"It is \boxed{{{gold}}}.",
    lambda gold: f"<think>2 + 2 = 5</think> <answer>{gold}</answer>",
    lambda gold: f"The answer is {gold}",
]
TEXTS = ["blue", "blue_plus", "3", "x = 3", "a = b", "yes", "Grün", "?", "it's", "1,234", "\\frac{1}{2}", "None"]
NUMBERS: list[Any] = [0, -7, 12, 3.5, 0.1, 1e-5, 1e16, -0.25, True + 1, "1,234,567", "3/4", "-2/3", "1 1/2", "50%"]
NUMBERS += ["$12.50", "72 apples", "\\frac{3}{4}", "6.02e23", "2.0", ".5", "They sold 48/2 = 24.\n#### 72"]
SETS: list[Any] = ["red, blue", ["red", "blue"], ["red"], {"a", "b", "c"}, ("salt and pepper", "x, y"), [], [1, 2, 2]]
BOXES: list[Any] = [[0, 0, 10, 10], [[1.5, 2, 3, 4], [0, 0, 1, 1]], "(1,2),(3,4)", "[[1, 2, 3, 4], [5, 6, 7, 8]]"]


@pytest.mark.parametrize("write", WRITTEN)
def test_the_reference_scores_one_wherever_it_is_written(write: Callable[[str], str]) -> None:
    for gold in TEXTS:
        assert rate(Exact(), write(gold), gold) == 1.0, gold
    for number in NUMBERS:
        assert rate(Numeric(), write(str(number).rpartition("#### ")[2]), number) == 1.0, number
    for letter in "ABCD":
        assert rate(Choice(), write(letter), letter) == 1.0
        assert rate(Choice(), write(f"({letter.lower()})"), letter) == 1.0
    options = ["red", "dark red", "A cat", "I", "2"]
    for index, option in enumerate(options):
        for right in (index, option, "ABCDE"[index]):
            assert rate(Choice(), write(option), right, options=options) == 1.0, (option, right)
            assert rate(Choice(), write("ABCDE"[index]), right, options=options) == 1.0
    for some in SETS:
        text = some if isinstance(some, str) else ", ".join(map(str, some)) or "none"
        assert rate(SetMatch(), write(text), some) == rate(SetMatch(False), write(text), some) == 1.0, some
    for boxes in BOXES:
        for verifier in (BoxIoU(), BoxIoU(0.99)):
            assert rate(verifier, write(str(boxes)), boxes) == 1.0, boxes


def test_the_reference_scores_one_in_our_own_worlds() -> None:
    asked = [arithmetic.problems(kind, 50) for kind in arithmetic.KINDS]
    counted = [task for some in asked for task in arithmetic.tasks(some)]
    golds = [task.reference for task in counted]
    assert Numeric()(completions=[f"That makes {gold}." for gold in golds], references=golds) == [1.0] * len(golds)
    for kind in scenes.TYPES:
        seen = scenes.tasks(scenes.questions(kind, 20, "gold"), "gold")
        golds = [task.reference for task in seen]
        for written in (golds, [task.extra["trace"] for task in seen]):
            assert Exact()(completions=written, references=golds) == [1.0] * len(golds), kind


def test_chats_are_read_and_samples_without_reference_are_left_out() -> None:
    chat = [{"role": "assistant", "content": "hm"}, {"role": "assistant", "content": [{"type": "text", "text": "= 4"}]}]
    assert Exact()(completions=[chat, "4", "5"], references=["4", None, "4"]) == [1.0, None, 0.0]


# Exact and numbers ----------------------------------------------------------------------------------------------


def test_exact_takes_any_of_several_references_and_nothing_else() -> None:
    assert rate(Exact(), "Answer: USA.", ["usa", "United States"]) == 1.0
    for wrong in ("us", "usa or uk", "", "Answer:", "not usa"):
        assert rate(Exact(), wrong, ["usa", "United States"]) == 0.0


def test_several_numbers_are_no_answer_unless_one_is_concluded() -> None:
    for right in ("I see 3 red and 4 blue, so 7", "I saw 3. Then 4 more came. Now there are 7", "7 (3 red, 4 blue)"):
        assert rate(Numeric(), right, 7) == 1.0, right
    for wrong in ("Answer: 7 or 3", "Answer: 3 or 7\n7", "I saw 7 before = x", "", "seven", "-7", "70", "7.01", "7/2"):
        assert rate(Numeric(), wrong, 7) == 0.0, wrong
    assert rate(Numeric(), "123456789012345678", "123456789012345679") == 0.0, "exactly, not as floats"


def test_tolerances_are_absolute_or_relative() -> None:
    """0.1 + 1 % of 200 = 2: 201.9 and 202 are near, 202.1 is not; relative alone is about the reference's size."""
    either = Numeric(tolerance=0.125, relative=0.0078125)  # exact in binary
    assert [rate(either, said, 200) for said in ("201.5625", "198.4375", "201.563")] == [1, 1, 0]
    assert [rate(either, said, -1) for said in ("-1.125", "-0.875", "-1.126", "1")] == [1, 1, 0, 0]
    assert rate(Numeric(), "3/10", 0.3) == rate(Numeric(), "0.30", "3/10") == 1.0
    with pytest.raises(UsageError, match=r"^a tolerance is not negative: got -1"):
        Numeric(-1)


def test_a_percentage_is_a_number_or_its_hundredth() -> None:
    right = [("50%", 50), ("50%", 0.5), (r"50\%", "50%"), ("50 %", "50"), ("0.5", "50%"), ("50", "50%")]
    assert all(rate(Numeric(), said, gold) == 1.0 for said, gold in right)
    assert rate(Numeric(), "50", 0.5) == rate(Numeric(), "0.5", 50) == rate(Numeric(), "5000%", 0.5) == 0.0


# Choices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hedge", ["A or B or C", "A, B", "(A) or (B)", "not A but B", "A/B", "blue or red", "A. blue"])
def test_naming_several_options_scores_nothing(hedge: str) -> None:
    for gold in "ABC":
        assert rate(Choice(), hedge, gold, options=["red", "blue", "green"]) == 0.0
        assert rate(Choice(), f"Answer: {hedge}", gold, options=["red", "blue", "green"]) == 0.0


def test_a_choice_is_named_by_its_letter_or_its_text() -> None:
    options = ["red", "blue", "dark red", "dog"]
    for said, named in {
        "B": "B",
        "b)": "B",
        "B. blue": "B",
        "The answer is (B) because it is blue.": "B",
        "It is dark red": "C",
        "a blue thing": "B",
        "A dog": "D",
        "I think B": "B",
        "A is right": "A",
        "A": "A",
        "infrared": "",
        "E": "",
    }.items():
        found = "".join(letter for letter in "ABCD" if rate(Choice(), said, letter, options=options))
        assert found == named, said


# Sets and boxes -------------------------------------------------------------------------------------------------


def test_sets_are_compared_by_f1_or_exactly() -> None:
    """{a, b, d} against {a, b, c, e}: 2 in common, F1 = 2 · 2 / (3 + 4)."""
    assert rate(SetMatch(), "Answer: d, B and a; a", ["a", "b", "c", "e"]) == pytest.approx(4 / 7)
    assert rate(SetMatch(False), "[b, a]", "a, b") == 1.0 and rate(SetMatch(False), "a", "a, b") == 0.0
    assert rate(SetMatch(False), "(1,2); (3,4)", "(3, 4); (1.0, 2)") == 1.0, "parts that have parts"
    assert (
        rate(SetMatch(), "(1,2); (3,5)", "(3, 4); (1, 2)") == 0.5 and rate(SetMatch(False), "(a); [b]", "b, a") == 1.0
    )
    assert rate(SetMatch(), "none", []) == 1.0 and rate(SetMatch(), "a", []) == rate(SetMatch(), "none", ["a"]) == 0.0
    assert rate(SetMatch(), "sandy, ands", ["sandy", "ands"]) == 1.0


def test_the_iou_of_boxes_by_hand() -> None:
    """A square of side 4 and the same shifted by (2, 2): 4 / (16 + 16 - 4)."""
    assert box_iou((0, 0, 4, 4), (2, 2, 6, 6)) == pytest.approx(4 / 28)
    assert box_iou((0, 0, 4, 4), (4, 0, 8, 4)) == box_iou((4, 4, 0, 0), (0, 0, 4, 4)) == 0.0
    assert boxes_of('{"bbox_2d": [1, 2.5, -3,4]} (1,2),(3,4) [1,2,3]') == [(1, 2.5, -3, 4), (1, 2, 3, 4)]


def test_boxes_are_matched_so_that_the_sum_is_largest() -> None:
    """Said p = (0,0,4,4), q = (0,0,4,2); wanted r = (0,0,4,3), s = (0,0,4,8). IoU of pr 3/4, ps 1/2, qr 2/3, qs 1/4:
    greedy takes pr and qs, 1; the best is ps and qr, 7/6."""
    wanted = [[0, 0, 4, 3], [0, 0, 4, 8]]
    assert rate(BoxIoU(), "[0,0,4,4] [0,0,4,2]", wanted) == pytest.approx(7 / 12)
    assert rate(BoxIoU(0.6), "[0,0,4,4] [0,0,4,2]", wanted) == 0.5  # only r can be reached
    assert rate(BoxIoU(form="xywh"), "[2, 2, 4, 4]", [0, 0, 4, 4]) == pytest.approx(4 / 28)


def test_many_boxes_do_not_pay() -> None:
    spam = " ".join(f"[{x},0,{x + 4},4]" for x in range(10))
    assert rate(BoxIoU(0.5), spam, [0, 0, 4, 4]) == pytest.approx(0.1)
    assert rate(BoxIoU(), "no box", [0, 0, 4, 4]) == 0.0
    assert rate(BoxIoU(), "[9,9,10,10] <answer>[0,0,4,4]</answer>", [0, 0, 4, 4]) == 1.0


# Form, length and programs --------------------------------------------------------------------------------------


def test_a_format_is_met_by_the_whole_text_once() -> None:
    good = " <think>a\nb</think>\n<answer>c</answer> "
    bad = ["<answer>c</answer>", f"{good}x", good * 2, "<think>a</think><answer>b<answer>c</answer></answer>"]
    assert Format()(completions=[good, *bad]) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert Format(r"[0-9]+")(completions=["12", "12a"]) == [1.0, 0.0]
    with pytest.raises(UsageError, match=r'^"\(" is no regular expression: '):
        Format("(")


def test_a_truncated_completion_is_penalised() -> None:
    rollouts = [SimpleNamespace(info=info) for info in ({"truncated": True}, {"truncated": False}, {})]
    assert Truncated(-0.5)(rollouts=rollouts) == [-0.5, 0.0, None]


def test_a_program_is_judged_by_the_tests_it_passes() -> None:
    body = "import sys\ndef double(x):\n    return 2 * x\nprint(double(int(sys.stdin.read() or 0)))"
    good = f"Here:\n```python\n{body}\n```"
    bad = good.replace("2 * x", "x + 2")
    tests: list[Any] = ["assert double(2) == 4", ("3\n", "6\n"), {"input": "1", "output": "2 \n\n"}]
    completions = [good, bad, "def double(:", "", good]
    verifier = CodeTests(limits=Limits(seconds=5))
    assert verifier(completions, [tests, tests, tests, tests, None]) == [1.0, pytest.approx(1 / 3), 0.0, 0.0, None]
    with pytest.raises(UsageError, match="programs are run by 0 workers; at least 1 is needed"):
        CodeTests(workers=0)
    assert CodeTests(False, workers=1)(completions[:2], [tests, "assert double(2) == 4"]) == [1.0, 1.0]
    assert program_of("```\na\n```\n```py\nb\n```") == "b\n" and program_of("a") == "a"
    assert program_of("```py\na\n```\nThat is all.\n```js\nb\n```\nc") == "a\n", "what stands behind a block is prose"
    with pytest.raises(ValueError, match=r"^sample 0: a test is a statement or a pair \(input, output\), not int"):
        verifier(["x"], [[3]])


def test_leaving_or_claiming_passes_no_test() -> None:
    tests = ["assert f() == 1"]
    for cheat in ("import os; os._exit(0)", "print('passed')", "def f(): import sys; sys.exit(0)"):
        assert CodeTests()([cheat], [tests]) == [0.0]


# Tables, and what no text may do -----------------------------------------------------------------------------------

VERIFIERS: list[Any] = [Exact(), Numeric(), Mathematics(), Digits(), Choice(), SetMatch(), SetMatch(False), BoxIoU()]
ROW = re.compile(r"^\s+(\S.*?)\s+(right|wrong)\s+(`.*`)$")


@pytest.mark.parametrize("verifier", VERIFIERS, ids=lambda verifier: type(verifier).__name__)
def test_a_verifier_scores_its_own_table(verifier: Any) -> None:
    rows = [found for line in str(type(verifier).__doc__).splitlines() if (found := ROW.match(line))]
    assert {row[2] for row in rows} == {"right", "wrong"}
    for row in rows:
        reference, _, options = row[1].partition(" of ")
        extra = {"options": options.split(", ")} if options else {}
        for said in re.findall("`([^`]*)`", row[3]):
            score = rate(verifier, said.replace(r"\n", "\n"), reference, **extra)
            assert score == 1.0 if row[2] == "right" else score < 1.0, (said, reference, score)


PIECES = ["7", "8", "-", "+", "/", "=", "(", ")", "[", "]", "{", "}", ",", ".", ":", "%", "^", "!", "\n", " ", "*", "$"]
PIECES += [
    "\\boxed{",
    "\\frac",
    "\\sqrt",
    "\\pi",
    "\\text{",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "####",
    "B",
    "A",
]
PIECES += [
    "red",
    "blue",
    "or",
    "and",
    "not",
    "Answer:",
    "so",
    "because",
    "\ud800",
    "\u0662",
    "½",
    "³",
    "x",
    "e",
    "1e9",
    "```",
]


def test_any_text_has_a_score_in_range_and_the_same_one_again() -> None:
    random = Random(0)
    texts = ["".join(random.choices(PIECES, k=random.randrange(1, 14))) for _ in range(400)]
    golds = {Numeric: "7", Digits: "7", Mathematics: "x^2 + 7", BoxIoU: [0, 0, 7, 8]}
    for verifier in VERIFIERS:
        gold = golds.get(type(verifier), "B")
        columns = {"references": [gold] * len(texts), "options": [["red", "blue"]] * len(texts)}
        scores = verifier(completions=texts, **columns)
        assert all(0 <= score <= 1 for score in scores)
        assert verifier(completions=texts[::-1], **columns) == scores[::-1]


def test_a_right_answer_beside_another_is_not_right() -> None:
    """Two answers, in any of the ways to name two, score less than the right one alone."""
    ways = [
        "{} or {}",
        "{}, {}",
        "{} and {}",
        "either {} or {}",
        "maybe {}, maybe {}",
        "{} / {}",
        "{}\n{}",
        "not {} but {}",
    ]
    for way in ways:
        for marked in ("{}", "Answer: {}", "\\boxed{{{}}}"):
            if marked == "Answer: {}" and "\n" in way:
                continue  # the answer is the first line
            for pair in (("7", "9"), ("9", "7")):
                assert rate(Numeric(), marked.format(way.format(*pair)), 7) == 0.0, (way, marked)
            for pair in (("B", "C"), ("C", "B")):
                assert rate(Choice(), marked.format(way.format(*pair)), "B") == 0.0, (way, marked)
            assert rate(Exact(), marked.format(way.format("red", "blue")), "red") == 0.0
            assert rate(SetMatch(False), marked.format(way.format("red", "blue")), "red") == 0.0


LONG = {
    "boxes left open": lambda n: "\\boxed{" * (n // 7),
    "tags left open": lambda n: "<answer>" * (n // 8),
    "thoughts left open": lambda n: "<think>" * (n // 7),
    "digits": lambda n: "1" * n,
    "braces": lambda n: "{" * n,
    "brackets": lambda n: "(" * n,
    "equations": lambda n: "= " * (n // 2),
    "sums": lambda n: "1+" * (n // 2) + "1",
    "signs": lambda n: "+-" * (n // 2) + "1",
    "thousands": lambda n: "1" + ",111" * (n // 4) + "1",
    "a fraction and spaces": lambda n: f"\\boxed{{\\frac{{{' ' * n}5}}}}",
    "an answer and spaces": lambda n: "answer" + " " * n + "x",
    "points and spaces": lambda n: "(1,2)" + " " * n + "x",
    "lines": lambda n: "7" + "\n" * n,
    "stars": lambda n: "answer: " + "*" * n,
    "bullets": lambda n: "- 7\n" * (n // 4),
    "words": lambda n: "so it is not B or " * (n // 18),
    "fences": lambda n: "```\n" * (n // 4),
    "letters": lambda n: "A " * (n // 2),
    "superscripts": lambda n: "³" * n,
    "underscores": lambda n: "_{" * (n // 2),
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_text_is_read_in_time_that_grows_with_its_length(name: str) -> None:
    """Four times the length takes at most ten times as long; sixteen times would be squares."""

    def seconds(verifier: Any, reference: Any, size: int) -> float:
        text, tries = LONG[name](size), []
        for _ in range(3):
            begin = time.process_time()
            rate(verifier, text, reference)
            tries.append(time.process_time() - begin)
        return min(tries)

    for verifier in VERIFIERS:
        reference = [0, 0, 1, 1] if isinstance(verifier, BoxIoU) else "A" if isinstance(verifier, Choice) else "3"
        few, many = seconds(verifier, reference, 3_000), seconds(verifier, reference, 12_000)
        assert many <= 10 * max(few, 1e-3), (type(verifier).__name__, few, many)


# Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verifier", "reference", "message"),
    [
        (Exact(), " ", "sample 1: the reference is empty"),
        (Numeric(), "seven", 'sample 1: the reference "seven" holds no number'),
        (Numeric(), "(1,2)", r'sample 1: the reference "\(1,2\)" is not one number: rewards for other answers are'),
        (Numeric(), float("inf"), 'sample 1: the reference "inf" holds no number'),
        (Choice(), "F", 'sample 1: the reference "F" names not one of the options A, B, C, D, E'),
        (Choice(), 5, "sample 1: the reference 5 is the index of none of 5 options"),
        (BoxIoU(), [0, 0, 0, 4], r'sample 1: the reference "\[0, 0, 0, 4\]" holds a box without area, or none'),
        (BoxIoU(), [[0, 0, 4]], r'sample 1: the reference "\[\[0, 0, 4\]\]" holds a box that is not four numbers'),
    ],
)
def test_a_reference_that_cannot_be_read_is_named(verifier: Any, reference: Any, message: str) -> None:
    good = {Exact: "7", Numeric: "7", Choice: "A", BoxIoU: [0, 0, 1, 1]}[type(verifier)]
    with pytest.raises(ValueError, match=f"^{message}"):
        verifier(completions=["7", "7"], references=[good, reference])


def test_a_completion_that_is_no_text_is_named() -> None:
    with pytest.raises(ValueError, match=r"^sample 0: a float is neither a text nor a chat"):
        rate(Exact(), 7.0, "7")


def test_options_out_of_range_are_refused() -> None:
    for make, message in (
        (partial(BoxIoU, 1.5), "the threshold of an IoU is 1.5"),
        (partial(BoxIoU, form="yxyx"), "boxes have the form xyxy or xywh"),
        (partial(CodeTests, workers=0), "programs are run by 0 workers"),
    ):
        with pytest.raises(UsageError, match=message):
            make()


# By name --------------------------------------------------------------------------------------------------------


def rollout(name: str, output: str, reference: Any, **extra: Any) -> Rollout:
    import torch

    task = Task(name, "a question", reference=reference, extra=extra)
    return Rollout(task, output, {}, None, torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("name", REWARDS["text"])
def test_every_name_makes_a_reward_that_travels(name: str) -> None:
    reward = make_reward(name)
    assert reward.name == name and isinstance(pickle.loads(pickle.dumps(reward)), Reward)


def test_rewards_are_named_weighted_and_added() -> None:
    """Sample 0 is right and badly formed, 1 wrong and well formed, 2 has no reference: 0.5 · 1, 0.25 · 1, 0."""
    both = compose(["numeric:0.5", "format:0.25"])
    formed = "<think>a</think><answer>8</answer>"
    rollouts = [rollout("a", "7", 7), rollout("b", formed, 7), rollout("c", "7", None)]
    means = score(rollouts, both)
    assert [r.scores["total"] for r in rollouts] == [0.5, 0.25, 0.0]
    assert means["reward/numeric"] == 0.5 and means["reward/format"] == pytest.approx(1 / 3)
    third = compose(["exact:0.3"])
    assert [weight for weight, _ in third.terms] == [0.3]
    assert compose(["exact"]).name == "exact"


def test_own_functions_stand_beside_the_names(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def short(completions, **_): return [float(len(c) < 3) for c in completions]")
    reward = compose([f"{tmp_path}/own.py:short:2", "exact", "world:-1"], own={"world": lambda: Truncated(1.0)})
    found = reward(completions=["7"], references=["7"], rollouts=[SimpleNamespace(info={"truncated": True})])
    assert found["total"] == [2.0]


def test_what_is_not_there_is_told_in_one_line() -> None:
    for specs, message in (
        (["exakt"], r'^unknown reward "exakt": did you mean exact or .*\? \(your own: package.module:NAME'),
        (["exact:much"], r'^the weight of the reward exact is "much", which is no number'),
        (["exact", "exact:2"], "^two rewards are named exact"),
        ([], "^no reward is named: there is aesthetic, boxes,"),
        (["nowhere.py:f"], "^there is no file nowhere.py"),
    ):
        with pytest.raises(UsageError, match=message):
            compose(specs)


def test_a_column_that_no_task_has_is_refused_before_anything_runs() -> None:
    def tidy(completions: Any, style: Any, **_: Any) -> list[float]:
        return [1.0]

    bare = [Task("a", "q"), Task("b", "q", extra={"level": 3, "style": None})]
    for reward, column in (
        (compose(["format", "numeric"]), 'reward numeric needs the column "references"'),
        (Reward(tidy), 'reward tidy needs the column "style"'),
        (make_reward("code"), 'reward code needs the column "tests"'),
    ):
        with pytest.raises(UsageError, match=f"^{column}, and none of the 2 tasks has it: they have level$"):
            require_columns(reward, bare)
    full = [Task("a", "q"), Task("b", "q", reference="7", extra={"style": "x"})]
    require_columns(compose(["format", "numeric", "truncated", "majority", "crowd", "views"]), full)
    require_columns(Reward(tidy), full)
    require_columns(Reward(max), full)
    several = [Task("a", "q", reference="7"), Task("b", "q", reference="5 or 7")]
    with pytest.raises(UsageError, match=r'^reward numeric, task b: the reference "5 or 7" is not one number'):
        require_columns(make_reward("numeric"), several)
    with pytest.raises(UsageError, match=r'^reward choice, task b: the reference "5 or 7" names not one of'):
        require_columns(make_reward("choice"), several[1:])
    with pytest.raises(ValueError, match=r'^Exact needs the column "references"'):
        Exact()(completions=["a"])
    assert math.isnan(score([rollout("a", "7", None)], make_reward("exact"))["reward"]), "it applies to none of them"
