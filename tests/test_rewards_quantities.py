"""Which number a text gives: by hand, fast against slow, and within its time."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from fractions import Fraction
from random import Random

import pytest

from autotelic.rewards.text import mathematics
from autotelic.rewards.text.answers import answer_of
from autotelic.rewards.text.mathematics import equal, evaluated
from autotelic.rewards.text.quantities import fraction_of, near, numbers_in, plain, quantity_of, worth

HALF, QUARTERS = Fraction(1, 2), Fraction(3, 4)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("7", [7]),
        ("-7", [-7]),
        ("\u22127", [-7]),
        ("answer - 7", [7]),
        ("well-7", [7]),
        ("x = -7", [-7]),
        ("1,234.5", [Fraction(2469, 2)]),
        ("1{,}234", [1234]),
        ("1\u202f234", [1234]),
        ("1 234 567", [1234567]),
        (".5", [HALF]),
        ("2E2", [200]),
        ("1e-3", [Fraction(1, 1000)]),
        ("3/4", [QUARTERS]),
        (r"-\frac{3}{4}", [-QUARTERS]),
        (r"\dfrac{ 6 }{8}", [QUARTERS]),
        (r"\frac34", [QUARTERS]),
        ("1 1/2", [1 + HALF]),
        (r"1\frac{1}{2}", [1 + HALF]),
        ("2\u00be", [2 + QUARTERS]),
        ("10\u00b3", [1000]),
        ("10^{-2}", [Fraction(1, 100)]),
        ("2*10^-2", [Fraction(1, 50)]),
        ("2^-1", [HALF]),
        ("7: 3 + 4", [7]),
        ("7;7", [7]),
        (r"6.02 \times 10^{23}", [602 * 10**21]),
        ("50%", [50, HALF]),
        ("50 percent", [50, HALF]),
        ("7 million", [7_000_000]),
        ("$7.50 per day", [Fraction(15, 2)]),
        ("7 m/s^2", [7]),
        ("7 cm^2", [7]),
        ("7 m/s^ 2", [7]),
        ("7 m/s^{-2}", [7]),
        ("7 m^{ 2 } of it", [7]),
        ("(- 7)", [-7]),
        ("the 7th", [7]),
        ("90^\\circ", [90]),
        ("\u0667", [7]),
        ("**7**", [7]),
        ("(7)", [7]),
        (r"\text{7}", [7]),
        ("f(2) = 7", [7]),
        ("x_1 = 7", [7]),
        ("2 apples + 5 apples = 7 apples", [7]),
        ("5 - 2 = 3, 3 + 4 = 7", [7]),
        ("7 or 7.0", [7]),
        ("0.5 (50%)", [HALF]),
        ("7 because 3 + 4 = 7", [7]),
        ("The answer is 7!", [7, 5040]),
    ],
)
def test_a_text_gives_one_number(text: str, values: list[Fraction]) -> None:
    found = quantity_of(answer_of(text, equations=False) or "")
    assert found is not None and found.worked_out and list(found.values) == values


NONE = "5 or 7|1 2 3|5, 7|5-ft-7|7x|x + 7|7 - x|2x = 14|x = 5 or x = 7|x = 5, x = 7|7 = 8|3:00|12:30 pm|2024-01-07"
NONE += "|6 = 7 = 7|7 = seven|x = 7 = seven|7:07|7_8|x = 7, y = 8|5 = 5 or 3 + 4 = 7|3 + 4 = 7 is not so"
NONE += "|1/7/2024|1.2.3|v1.2|x2|seven|7/0|12,34|1.234,50|not 7|7 is wrong|at least 7|> 7|\\pm 7|\\ge 7|7i|\\infty"
NONE += "|\\sin 7|\\binom{7}{1}|between 5 and 7|5. 6. 7.|9^9^9^9|9^{9^{9^9}}|7k||+|="


@pytest.mark.parametrize("text", NONE.split("|"))
def test_a_text_gives_no_number(text: str) -> None:
    assert quantity_of(text) is None


@pytest.mark.parametrize("text", ["3 + 4", "14/2", "10 - 3", "7 * 1", "3 x 4", "2(3)", r"\sqrt{9}", "1 + 2 * 3"])
def test_a_task_is_not_worked_out(text: str) -> None:
    found = quantity_of(text)
    assert found is not None and not found.worked_out


def test_irrational_numbers_are_compared_to_fifty_digits() -> None:
    root, other = quantity_of(r"\sqrt{75}"), quantity_of("5*sqrt(3)")
    assert root is not None and other is not None and root.agrees(other)
    assert float(root.values[0]) == pytest.approx(5 * math.sqrt(3), rel=1e-15)
    assert not near(root.values[0], Fraction("8.66025403784438646763"))
    some, more = 1 + Fraction(1, 5 * 10**40), 1 + Fraction(1, 10**40)  # written out in more than 40 digits, or not
    assert near(Fraction(1), some) and not near(Fraction(1), more)
    assert near(Fraction(2), Fraction(1), tolerance=1) and not near(Fraction(2), Fraction(1), relative=0.5)


def test_brackets_around_all_of_an_expression_are_no_part_of_it() -> None:
    for text, worked_out in (("((3/4))", True), ("{ (3/4) }", True), ("(3)/(4)", False)):
        found = worth(text)
        assert found is not None and (found.values, found.worked_out) == ((QUARTERS,), worked_out), text


def test_what_is_too_long_is_no_number() -> None:
    assert fraction_of("1e200") == 10**200 and fraction_of("9" * 300) == int("9" * 300)
    assert fraction_of("1e201") is None and fraction_of("9" * 301) is None and fraction_of("1e99999") is None
    assert worth("1+" * 200 + "1") is None and quantity_of("9" * 301) is None
    assert numbers_in("a 7") and not numbers_in("seven")


def test_plain_numbers_are_worth_the_same_in_mathematics() -> None:
    """What is read here quickly is what math-verify reads slowly."""
    random = Random(0)
    for _ in range(120):
        a, b = random.randrange(-999, 999), random.randrange(1, 99)
        for text in (
            f"{a}",
            f"{a / 8}",
            f"{a}/{b}",
            rf"\frac{{{abs(a)}}}{{{b}}}",
            f"{abs(a)}*10^{{{b % 7}}}",
            f"{b}^{{3}}",
        ):
            quick, slow = worth(text), evaluated(text)
            assert quick is not None and slow is not None
            assert quick.values[0] == pytest.approx(slow.value, abs=1e-12), text
    for text in ("3 + 4", "2 * 3 - 1", "(1 + 2) / 4", "2^{10} - 24"):
        quick, slow = worth(text), evaluated(text)
        assert quick is not None and slow is not None and (quick.values[0], quick.worked_out) == (slow.value, False), (
            text
        )
    assert plain("3 + 4") is None and plain(r"\sqrt{2}") is None


def test_an_expression_that_takes_too_long_ends_its_process_and_the_next_is_read() -> None:
    assert evaluated(r"\sqrt{2}") is not None
    before = mathematics._workers.copy()
    begin = time.monotonic()
    assert mathematics._ask({"value": r"\frac{10^{10^{10}}}{7}"}) is None
    assert time.monotonic() - begin < 60
    assert evaluated(r"\sqrt{5}") is not None and list(mathematics._workers) == list(before)


def test_the_time_limit_is_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop in C that no signal handler of Python's would interrupt is ended too."""
    from autotelic.rewards.text import math_worker

    code = (
        "import sys, runpy, types\n"
        f"module = runpy.run_path({math_worker.__file__!r})\n"
        "scope = module['main'].__globals__\n"
        "scope['answer'] = lambda question: {'found': bool(pow(3, 10**9))}\n"
        "module['main']()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps({}) + "\n", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-27, ""), done.stderr[-300:]  # SIGPROF


def test_other_mathematics_is_equal_or_not() -> None:
    assert equal("1 + x^2", "x^2+1") is True and equal("x^2", "x^2+1") is False
    assert equal(r"\{2, 1\}", r"\{1, 2\}") is True and equal("[0, 1)", "[0, 1]") is False
    assert equal("1", "") is None
