"""What takes a while says so: on the way, at its end, and in the main process alone."""

from __future__ import annotations

import time

import pytest

from autotelic.fitting import fit
from autotelic.trainers.runs.progress import Progress
from autotelic.types import Verdict
from autotelic.working import duration, working


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (0.44, "0.4 s"), (53.2, "53 s"), (89.9, "90 s"), (90, "2 min"), (5399, "90 min"), (7560, "2.1 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_what_ends_soon_says_nothing_where_that_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with working("asking", after=10.0):
        pass
    assert capsys.readouterr().out == ""


def test_what_goes_on_says_so_after_all(capsys: pytest.CaptureFixture[str]) -> None:
    with working("asking", after=0.02, every=0.03):
        time.sleep(0.2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "asking …" and lines[1].startswith("  asking: 0.") and lines[-1].startswith("asking: 0.")


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with working("asking", total=3) as advance:
        advance(1)
    assert capsys.readouterr().out == ""


def test_an_error_ends_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), working("asking", every=0.01):
        raise KeyError
    said = capsys.readouterr().out
    time.sleep(0.05)
    assert capsys.readouterr().out == "" and "asking: " not in said, "nothing is told of an end that was none"


def test_a_fit_counts_its_steps(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    weight = torch.nn.Parameter(torch.ones(()))

    def loss(step: int) -> torch.Tensor:
        time.sleep(0.01)
        return weight**2

    fit([weight], loss, [0.1] * 3, told="fitting one number")
    assert capsys.readouterr().out.startswith("fitting one number …")
    fit([weight], loss, [0.1] * 3)
    assert capsys.readouterr().out == ""


def test_what_is_left_is_reckoned_from_rounds_of_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, 6) as progress:
        progress.show(7, {"reward": 1.0, "time/act": 3.0, "time/learn": 1.0})
        progress.show(8, {"reward": 1.0, "time/act": 1.0, "time/learn": 1.0})
        progress.show(10, {"reward": 1.0, "time/act": 1.0, "time/learn": 1.0})
        progress.decided(10, Verdict("wait", "nothing better", stop=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("4 s, 12 s left") and lines[1].endswith("2 s, 6 s left") and lines[2].endswith("2 s")
    assert lines[3] == "gate after iteration 10: wait, stop: nothing better"


def test_of_works_within_one_another_the_inner_one_tells(capsys: pytest.CaptureFixture[str]) -> None:
    with working("preparing", every=0.05), working("cloning", every=0.05):
        time.sleep(0.18)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert said and all(line.startswith("  cloning: ") for line in said)
