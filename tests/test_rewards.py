"""Rewards as values: names, sums of sums, and what cannot be added. Scores themselves: test_scoring.py."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from autotelic.rewards.reward import Reward, WeightedSum


def length(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


class AtMost:
    """1.0 for texts of at most so many letters."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        return [float(len(text) <= self.limit) for text in completions]


def test_a_reward_is_named_after_its_function_or_class() -> None:
    assert Reward(length).name == "length" and Reward(AtMost(3)).name == "AtMost"
    assert (2 * Reward(length, "letters") + Reward(AtMost(3)) * 0.5).name == "2 letters + 0.5 AtMost"


def test_sums_of_sums_are_flat() -> None:
    """3 (2 a + b) + c = 6 a + 3 b + c, at a text of two letters: 6 * 2 + 3 * 1 + 2."""
    total = 3 * (2 * Reward(length, "a") + Reward(AtMost(3), "b")) + Reward(length, "c")
    assert isinstance(total, WeightedSum)
    assert [(weight, term.name) for weight, term in total.terms] == [(6, "a"), (3, "b"), (1, "c")]
    scores = total(completions=["ab", "abcd"])
    assert scores == {"a": [2, 4], "b": [1, 0], "c": [2, 4], "total": [17, 28]}


def test_a_term_with_several_scores_counts_by_its_total() -> None:
    def judged(completions: Sequence[str], **_: Any) -> dict[str, list[float]]:
        return {"style": [0.25], "total": [0.5]}

    def untotalled(completions: Sequence[str], **_: Any) -> dict[str, list[float]]:
        return {"first": [8.0], "second": [0.0]}

    assert (2 * Reward(judged) + Reward(length))(completions=["ab"])["total"] == [3.0]
    assert (Reward(untotalled) + Reward(length))(completions=["ab"])["total"] == [10.0]


def test_scores_per_segment_and_a_number_add_up() -> None:
    """A number belongs to the last segment, as in a batch."""
    steps = Reward(lambda **_: [torch.tensor([0.5, 0.25])], "steps")
    lists, whole = Reward(lambda **_: [[1.0, 2.0]], "lists"), Reward(lambda **_: [3.0], "whole")
    assert (2 * steps + 3 * lists + whole)(completions=["a"])["total"] == [[4.0, 9.5]]
    longer = Reward(lambda **_: [[1.0, 2.0, 3.0]], "longer")
    with pytest.raises(ValueError, match="the terms returned scores of different numbers of segments"):
        (lists + longer)(completions=["a"])


def test_a_sum_with_parameters_travels_to_another_process() -> None:
    total = 0.5 * Reward(AtMost(3)) + 0.5 * Reward(length)
    again = pickle.loads(pickle.dumps(total))
    assert again.name == total.name
    assert again(completions=["ab", "abcd"]) == total(completions=["ab", "abcd"])
