"""Scores as numbers, means, rows by key, and figures in words."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from autotelic.numbers import Outcomes, figure, mean, p_value, rows_by_key, scalar


def test_a_score_is_one_number_whatever_its_form() -> None:
    assert math.isnan(scalar(None))
    assert scalar(True) == 1.0 and scalar(0.25) == 0.25
    assert scalar([0.5, 0.25]) == 0.75 and scalar(torch.tensor([0.5, 0.25], requires_grad=True)) == 0.75
    assert scalar(torch.tensor(2.0)) == 2.0 and scalar(np.float32(0.5)) == 0.5  # type: ignore[arg-type]


def test_a_mean_of_nothing_is_nan() -> None:
    assert mean([1, 2, 6]) == 3 and mean(np.array([1.0, 2.0])) == 1.5
    assert math.isnan(mean([]))
    assert mean([0.1] * 10) == 0.1, "summed exactly"


def test_rows_keep_their_order() -> None:
    assert list(rows_by_key("baacb").items()) == [("b", [0, 4]), ("a", [1, 2]), ("c", [3])]


def test_rates_are_percent_and_other_outcomes_as_they_are() -> None:
    rates, plain = Outcomes(True), Outcomes(False)
    assert rates.value(0.256) == "25.6" and plain.value(0.2564) == "0.256"
    assert rates.interval((0.1, 0.4567)) == "10 to 46" and plain.interval((-1.5, 2.0), "+") == "-1.5 to +2"
    assert rates.interval(None) == "" and rates.interval((-math.inf, math.inf)) == ""
    assert rates.change(-0.05) == "-5.0 points" and plain.change(0.5) == "+0.5"
    assert rates.with_unit(0.5) == "50.0\u00a0%" and rates.value(math.nan) == "n/a"


@pytest.mark.parametrize(("p", "words"), [(None, ""), (0.0004, "< 0.001"), (0.0123, "0.012"), (0.456, "0.46")])
def test_p_values(p: float | None, words: str) -> None:
    assert p_value(p) == words


def test_figures() -> None:
    assert [figure(x) for x in (1.23456, None, math.nan, 7)] == ["1.23", "n/a", "n/a", "7"]
    assert figure(1.23456, "+", 4) == "+1.235"
