"""Where an answer stands in a text, and what is left of it as a vote."""

from __future__ import annotations

import pytest

from autotelic.rewards.text.answers import answer_of, normalise, vote_of, without_thoughts


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("7", "7"),
        ("a <think>b</think> c", "a  c"),
        ("a<think>b</think>c<reasoning>d</reasoning>e", "ace"),
        ("b</think>c", "c"),  # opened in the prompt
        ("a</think>b</think>c", "c"),
        ("a<think>b<think>c</think>d", "ad"),  # opened twice, closed once
        ("a<think>b", "a"),  # cut off
        ("b</think>c<think>d", "c"),
        ("a[THINK]b[/THINK]c", "ac"),
        ("a\u25c1think\u25b7b\u25c1/think\u25b7c", "ac"),
        ("<b>7</b> [think]", "<b>7</b> [think]"),
    ],
)
def test_thoughts_are_left_out(text: str, spoken: str) -> None:
    assert without_thoughts(text) == spoken


def test_answers_that_hardly_anything_parts_are_one() -> None:
    one, two = r"\boxed{1}", r"\boxed{2}"
    assert answer_of(f"{one} or {two}") == "1 or 2" and answer_of(f"{one}, {two}") == "1, 2"
    assert answer_of(f"{one} then {two}") == "2" and answer_of(f"{one}, {two}, {one}") == "1, 2, 1"
    assert answer_of(one + " " * 19 + two) == "1, 2" and answer_of(one + " " * 20 + two) == "2"


def test_votes_are_normalised_answers() -> None:
    assert vote_of("so the answer is: The **Cat**.") == vote_of(r"\boxed{a cat}") == normalise("cat") == "cat"
    assert vote_of("= ") is None and vote_of("") is None


def test_a_list_goes_on_to_the_next_empty_line_where_it_is_asked_for() -> None:
    below, bullets, line = "Answer:\n7\n8\n\nso", "Answer: - 7\n- 8\n\nso", "Answer: 7\n8\n\nso"
    assert [answer_of(text, lines=True) for text in (below, bullets, line)] == ["7\n8", "- 7\n- 8", "7"]
    assert [answer_of(text) for text in (below, bullets, line)] == ["7", "- 7", "7"]


def test_a_box_in_a_box_does_not_hide_the_words_around_it() -> None:
    assert answer_of(r"\boxed{\boxed{1} or 2}") == "1 or 2"
    assert answer_of(r"\boxed{\boxed{\frac{1}{2}}}") == r"\frac{1}{2}"
    assert answer_of(r"\boxed{3} \boxed{4 \boxed{5}") == "5"  # the one around it is never closed
    assert answer_of("\\boxed{" * 20_000 + "1" + "}" * 20_000) is not None
