"""Every case of strange input has the outcome that it must have; the slow ones are tried by benchmarks/strangers.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.strangers.cases import Case, all_cases

CASES = all_cases()


@pytest.mark.parametrize("case", [case for case in CASES if not case.slow], ids=lambda case: case.name)
def test_a_stranger_is_met_as_it_must_be(case: Case, tmp_path: Path) -> None:
    ended = case.run(tmp_path)
    if ended.how == "skipped":
        pytest.skip(str(ended.value))
    right = case.verdict(ended) == "right"
    if case.waits:
        assert not right, f"{case.name} is repaired: take its mark away"
        pytest.xfail(f"{case.verdict(ended)}: {ended.value}")
    assert right, f"must be {case.required}, is {ended}"
