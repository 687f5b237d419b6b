"""Errors of what a person wrote: told in one line, with the place in their file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotelic.errors import UsageError, of_ones_own, own_place, raised


def mine(kind: type[Exception], text: str) -> None:
    raise kind(text)


def caught(error: type[BaseException], act: Any) -> BaseException:
    with pytest.raises(error) as info:
        act()
    return info.value


def test_the_last_place_in_a_file_of_ones_own() -> None:
    place = own_place(caught(KeyError, lambda: mine(KeyError, "goal")))
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "raise kind(text)" in text)
    assert place == f"test_errors.py, line {line}"
    deep = own_place(caught(json.JSONDecodeError, lambda: json.loads("{")))
    assert deep is not None and deep.startswith("test_errors.py"), "what the standard library raises is its caller's"


def test_an_exception_in_one_line() -> None:
    told = raised(caught(ValueError, lambda: mine(ValueError, "many\n  lines")))
    assert told.startswith("ValueError: many lines (test_errors.py, line ")
    assert raised(UsageError("as  it\nis")) == "as it is"
    assert raised(ValueError("never raised")) == "ValueError: never raised"


def test_only_what_is_ones_own_is_told_in_a_line() -> None:
    where = r"^the judge raised KeyError: 'a' \(test_errors.py, line \d+\)$"
    with pytest.raises(UsageError, match=where), of_ones_own("the judge"):
        {}["a"]
    with pytest.raises(UsageError, match=r"^as it is$"), of_ones_own("the judge"):
        raise UsageError("as it is")
    with pytest.raises(KeyboardInterrupt), of_ones_own("the judge"):
        raise KeyboardInterrupt


def test_the_package_s_own_errors_pass_as_they_are() -> None:
    from autotelic.envs.video import write_side_by_side

    found: list[BaseException] = []

    def inside() -> None:
        try:
            write_side_by_side("x", np.zeros((0, 1, 1, 3), np.uint8), np.zeros((0, 1, 1, 3), np.uint8), ("", ""))
        except ValueError as error:
            error.__traceback__ = None if error.__traceback__ is None else error.__traceback__.tb_next
            found.append(error)

    inside()
    assert own_place(found[0]) is None
