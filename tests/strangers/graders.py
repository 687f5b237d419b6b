r"""Answers and programs that try to fool a grader, and honest ones that a careless grader refuses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autotelic.rewards.names import make_reward
from autotelic.rewards.text.answers import answer_of, require_columns
from autotelic.types import Task

from .cases import Gives, Refuses, case


def rate(name: str, said: str, reference: Any, **row: Any) -> object:
    columns = {column: [value] for column, value in row.items()}
    return make_reward(name)(completions=[said], references=[reference], **columns)["total"][0]


def graded(report: str, name: str, score: float, pairs: Sequence[tuple[str, Any]], **row: Any) -> None:
    """One case per answer: what it scores under a reward by name."""
    for said, reference in pairs:
        title = f'{report}: {name}, "{said if len(said) < 60 else said[:60] + "..."}" for {reference!r}'
        case(
            title,
            kind="graders",
            modality="vlm",
            entry="reward",
            required=Gives(score),
            by="policy",
        )(lambda folder, said=said, reference=reference: rate(name, said, reference, **row))


# Numbers --------------------------------------------------------------------------------------------------------

WRONG_NUMBERS: list[tuple[str, Any]] = [
    ("3", r"5\sqrt{3}"),
    ("5", r"5\sqrt{3}"),
    ("5", r"5\pi"),
    ("4", r"\frac{\pi}{4}"),
    ("10", "10^3"),
    ("103", "10³"),
    ("5 or 7", 7),
    ("between 5 and 7", 7),
    ("1 2 3 4 5 6 7", 7),
    ("Answer: 5, 6 or 7", 7),
    (r"\boxed{5 \text{ or } 7}", 7),
    (r"\boxed{5, 7}", 7),
    (r"\boxed{\{5, 7\}}", 7),
    (r"\boxed{\pm 7}", 7),
    ("5-7", 7),
    ("5 to 7", 7),
    ("It is not 7", 7),
    ("7 is wrong", 7),
    ("anything but 7", 7),
    ("at least 7", 7),
    ("less than 7", 7),
    ("> 7", 7),
    ("7x", 7),
    ("7 + x", 7),
    ("3:00", 3),
    ("3:00", 0),
    ("0:07", 7),
    ("3 + 4", 7),
    ("7 = 8", 8),
    ("7k", 7),
    ("7 million", 7),
    ("1.234,50", "1234.5"),
    ("12,34", 34),
    ("<think>7</think>", 7),
    ("7/0", 7),
    ("2024-01-07", 7),
    ("7 8", 7),
    ("nan", 7),
    ("inf", 7),
    ("7^7^7^7", 7),
]
RIGHT_NUMBERS: list[tuple[str, Any]] = [
    (r"5\sqrt{3}", r"5\sqrt{3}"),
    (r"\boxed{5\sqrt3}", r"5\sqrt{3}"),
    ("5*sqrt(3)", r"5\sqrt{3}"),
    ("5√3", r"5\sqrt{3}"),
    (r"\sqrt{75}", r"5\sqrt{3}"),
    (r"\frac\pi4", r"\frac{\pi}{4}"),
    ("pi/4", r"\frac{\pi}{4}"),
    ("5π", r"5\pi"),
    ("1000", "10^3"),
    ("1,000", "10^3"),
    ("10^3", 1000),
    ("10³", 1000),
    ("7 = 3 + 4", 7),
    ("3 + 4 = 7", 7),
    (r"\frac34", "3/4"),
    (r"\frac34", 0.75),
    (r"\boxed{\dfrac{3}{4}}", "0.75"),
    ("1,234.50", "1234.5"),
    ("$1,234.50", 1234.5),
    ("1{,}234.5", 1234.5),
    ("50%", 0.5),
    (r"50\%", "1/2"),
    ("½", 0.5),
    ("1½", 1.5),
    ("6.02 × 10^23", "6.02e23"),  # noqa: RUF001
    (r"6.02 \times 10^{23}", "6.02e23"),
    ("x = 7", 7),
    ("$7$", 7),
    (r"\(7\)", 7),
    (r"\text{7}", 7),
    ("7 apples", 7),
    (r"7\text{ cm}", 7),
    ("7 cm^2", 7),
    (r"7^\circ", 7),
    ("7°", 7),
    ("7.", 7),
    ("7.0", 7),
    ("+7", 7),
    ("−7", -7),  # noqa: RUF001
    ("There are 7.", 7),
    ("I see 3 red and 4 blue, so 7", 7),
    ("<think>5 or 6</think>7", 7),
    ("7 000", 7000),
    ("7 million", 7_000_000),
    (r"2^{10}", 1024),
    (r"-\frac{2}{3}", "-2/3"),
]
graded("vlm A12", "numeric", 0.0, WRONG_NUMBERS)
graded("vlm A12", "numeric", 1.0, RIGHT_NUMBERS)
for _reference in ("(1,2)", "3:00", "x^2+1", "5 or 7", "[4, 5]", "seven", "1/0", r"\{1, 2\}", r"\pm 3", "2024-01-05"):

    @case(
        f"vlm A12: the reference {_reference} is no single number",
        kind="graders",
        modality="vlm",
        entry="reward",
        required=Refuses("no (single )?number|holds no number|not one number"),
        by="user",
    )
    def a_reference_of_several(folder: Path, reference: str = _reference) -> object:
        require_columns(make_reward("numeric"), [Task("a", "q", reference=reference)])
        return rate("numeric", "1", reference)


def growth(name: str, reference: Any, text: Any) -> bool:
    """Whether eight times the text takes at most thirty times as long; the quickest of three tries."""
    reward = make_reward(name)

    def seconds(size: int) -> float:
        tries = []
        for _ in range(3):
            begin = time.process_time()
            reward(completions=[text(size)], references=[reference])
            tries.append(time.process_time() - begin)
        return min(tries)

    seconds(10)
    return seconds(8_000) <= 30 * max(seconds(1_000), 2e-4)


LONG: dict[str, Any] = {
    "a fraction with spaces": lambda n: rf"\boxed{{\frac{{{' ' * n}5}}}}",
    "thousands without an end": lambda n: "1" + ",111" * (n // 4) + "1",
    "answer and spaces": lambda n: "answer" + " " * n + "x",
    "a point and spaces": lambda n: "(1,2)" + " " * n + "x",
    "stars": lambda n: "*" * n + "x",
    "commas": lambda n: "1," * n,
    "open boxes": lambda n: r"\boxed{" * (n // 7),
    "open brackets": lambda n: "(" * n,
    "words": lambda n: "so it is not B or " * (n // 18),
    "a line of digits": lambda n: "1" * n,
    "slashes": lambda n: "1/" * n,
    "minus signs": lambda n: "-" * n + "7",
    "thoughts": lambda n: "<think>" * (n // 7),
    "fences": lambda n: "```\n" * (n // 4),
    "bullets": lambda n: "- \n" * (n // 3),
}
for _text, _make in LONG.items():

    @case(
        f"vlm A8: reading {_text} takes time that grows with its length",
        kind="policy errors",
        modality="vlm",
        entry="reward",
        required=Gives([True] * 6),
        by="policy",
        slow=True,
    )
    def in_linear_time(folder: Path, make: Any = _make) -> object:
        named = {"exact": "7", "numeric": "7", "digits": "7", "choice": "A", "set": "7, 8", "boxes": [0, 0, 1, 1]}
        return [growth(name, reference, make) for name, reference in named.items()]


for _deep in (
    r"\frac{1}{" * 400 + "1" + "}" * 400,
    r"\sqrt{" * 2000,
    "9^9^9^9^9",
    "10^10^10^10",
    r"\frac{9^{9^{9^9}}}{7}",
    "(" * 3000 + "7" + ")" * 3000,
    "1000000!!",
    r"\sum_{i=1}^{10^{12}} i",
    "7 \ud800 8",
    "7" * 5000,
    "1e999999999",
):

    @case(
        f"vlm A8: numeric reads {_deep[:24]!r} ({len(_deep)} characters) and goes on",
        kind="policy errors",
        modality="vlm",
        entry="reward",
        required=Gives([0.0, 1.0]),
        by="policy",
    )
    def too_much_to_evaluate(folder: Path, text: str = _deep) -> object:
        said = [rf"\boxed{{{text}}}", "7"]
        return make_reward("numeric")(completions=said, references=["7", "7"])["total"]


# Choices, sets, texts and boxes ---------------------------------------------------------------------------------

OPTIONS = ["red", "blue", "green"]
graded(
    "vlm A12",
    "choice",
    0.0,
    [
        (said, "B")
        for said in (
            "It is not B",
            "It isn't B",
            "not (B)",
            "B is wrong",
            "B is incorrect",
            "neither B",
            "It is neither",
            "anything but B",
            "all except B",
            "B or something else",
            "never blue",
            "it is not blue",
            "A or B",
            "A, B, C",
            "A-C",
            "maybe A, maybe B",
            "I rule out B",
            "B? No.",
            "<think>B</think>",
            "",
        )
    ],
    options=OPTIONS,
)
graded(
    "vlm A12",
    "choice",
    1.0,
    [
        (said, "B")
        for said in (
            "B",
            "(b)",
            "The answer is B.",
            r"\boxed{\text{B}}",
            "**B**",
            "B. blue",
            "Blue",
            "It is blue",
            "B because it is not round",
            "The answer is (B), because A is wrong",
            "option b",
            "I think (b)",
            "<think>A or C, not B</think> B",
        )
    ],
    options=OPTIONS,
)
graded("vlm A12", "choice", 1.0, [("No.", "no"), ("no", "B"), ("B. No", "no")], options=["yes", "no"])
graded("vlm A12", "choice", 1.0, [("None of these", "C"), ("C", 2)], options=["1", "2", "none of these"])

graded(
    "vlm A12",
    "set_exact",
    1.0,
    [
        ("- red\n- blue", "red, blue"),
        ("* red\n* blue", ["red", "blue"]),
        ("1. red\n2. blue", "red, blue"),
        ("1) red\n2) blue", "red, blue"),
        ("• red\n• blue", "red, blue"),
        ("red and blue", "red, blue"),
        ("red, blue, and green", "red, blue, green"),
        ("red & blue", "red, blue"),
        ("(3,4), (1,2)", "(1,2), (3,4)"),
        (r"\{(1,2), (3,4)\}", "(1,2), (3,4)"),
        ("[1, 2], [3, 4]", [[1, 2], [3, 4]]),
        ("a red ball, the blue cube", "red ball, blue cube"),
        (r"\boxed{red, blue}", ["red", "blue"]),
        (r"\{2, 1\}", [1, 2]),
        ("Answer:\n- red\n- blue", "red, blue"),
        ('["red", "blue"]', ["red", "blue"]),
        ("2, 1, 2", [1, 2, 2]),
        ("<think>- green</think>- red\n- blue", "red, blue"),
    ],
)
graded(
    "vlm A12",
    "set_exact",
    0.0,
    [
        ("(1,3), (2,4)", "(1,2), (3,4)"),
        ("(2,1), (4,3)", "(1,2), (3,4)"),
        ("1, 2, 3, 4", "(1,2), (3,4)"),
        ("red", "red, blue"),
        ("red, blue, green", "red, blue"),
        ("red or blue", "red, blue"),
        ("not red, blue", "red, blue"),
        ("1, 2", [1, 2, 2]),
        ("<think>red, blue</think>", "red, blue"),
    ],
)
graded("vlm A12", "set", 0.0, [("(1,3), (2,4)", "(1,2), (3,4)"), ("not red", "red")])
graded(
    "vlm A12",
    "exact",
    1.0,
    [
        ("a red ball", "red ball"),
        ("The red ball.", "red ball"),
        ("72", 72.0),
        ("72.0", 72),
        ("yes", True),
        ("false", False),
        ("caf\u00e9", "cafe\u0301"),
        ("it\u2019s", "it's"),
        ("ice-cream", "ice\u2010cream"),
        ("<think>blue</think>red", "red"),
    ],
)
graded("vlm A12", "exact", 0.0, [("red or blue", "red"), ("not red", "red"), ("", "red"), ("<think>red", "red")])
graded(
    "vlm A12",
    "boxes",
    1.0,
    [
        ("[0, 0, 4, 4]", [0, 0, 4, 4]),
        ("[[0, 0], [4, 4]]", [0, 0, 4, 4]),
        ('{"bbox_2d": [0, 0, 4, 4], "label": "a"}', [0, 0, 4, 4]),
        ("(0,0),(4,4)", [0, 0, 4, 4]),
        ("[0 0 4 4]", [0, 0, 4, 4]),
        ("[4e0, 0, 8.0, 4]", [4, 0, 8, 4]),
        ("<think>[9, 9, 10, 10]</think>[0, 0, 4, 4]", [0, 0, 4, 4]),
        ("[9, 9, 10, 10]</think>[0, 0, 4, 4]", [0, 0, 4, 4]),
        ("[0, 0, 4, 4]", {"bbox_2d": [0, 0, 4, 4]}),
    ],
)
graded(
    "vlm A12",
    "boxes",
    0.0,
    [
        ("[0, 0, 4, 4, 8, 8]", [0, 0, 4, 4]),
        ("<think>[0, 0, 4, 4]</think>", [0, 0, 4, 4]),
        ("[4, 4, 0, 0]", [0, 0, 4, 4]),
        (f"[0, 0, {'9' * 400}, 4]", [0, 0, 4, 4]),
        ("[0, 0, nan, 4]", [0, 0, 4, 4]),
    ],
)

# Thoughts -------------------------------------------------------------------------------------------------------

for _said, _answer in {
    r"<think>maybe \boxed{5}</think> The answer is 7.": "7.",
    "<think>#### 5</think> The answer is 7": "7",
    "<think>Answer: 5</think>7": "7",
    r"<think>it is \boxed{5}": None,
    r"\boxed{5} is too few</think>7": "7",
    r"Answer: 7 <think>or \boxed{5}": "7",
    "<think>a</think><think>= 5</think>7": "7",
    "<think>a <think>b</think> = 5</think>7": "7",
    "<THINK>= 5</THINK>7": "7",
    "<think>5</think>": None,
    "<thinking>= 5</thinking>7": "7",
    "<think><answer>5</answer></think><answer>7</answer>": "7",
    "I don't <think> so, \\boxed{5}": "I don't",
}.items():

    @case(
        f"vlm A20: the answer of {_said!r}",
        kind="text to ids",
        modality="vlm",
        entry="reward",
        required=Gives(_answer),
        by="policy",
    )
    def an_answer_beside_thoughts(folder: Path, said: str = _said) -> object:
        return answer_of(said)


for _said, _score in {
    "<think>a</think><answer>b</answer>": 1.0,
    "a</think>\n<answer>b</answer>": 1.0,
    "\na\n</think>\n\n<answer>b</answer>\n": 1.0,
    "<answer>b</answer>": 0.0,
    "a</think>b": 0.0,
    "a</think></think><answer>b</answer>": 0.0,
    "a</think><answer>b</answer><answer>c</answer>": 0.0,
    "a<think>b</think><answer>c</answer>": 0.0,
    "<think>a</think><answer> </answer>": 0.0,
}.items():

    @case(
        f"vlm A20: the form of {_said!r}",
        kind="graders",
        modality="vlm",
        entry="reward",
        required=Gives(_score),
        by="policy",
    )
    def a_form_with_prefilled_thoughts(folder: Path, said: str = _said) -> object:
        return make_reward("format")(completions=[said])["total"][0]
