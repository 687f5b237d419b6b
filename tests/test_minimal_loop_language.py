"""The loop with a language model on one screen: it learns, its gate holds what was learned, and it stays small."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from autotelic.testing.vlms import text

PATH = Path(__file__).parents[1] / "docs" / "minimal_loop_language.py"


@pytest.fixture(scope="module")
def loop() -> dict[str, Any]:
    return runpy.run_path(str(PATH), run_name="minimal_loop_language")


def test_it_learns_and_the_gate_holds_what_was_learned(loop: dict[str, Any]) -> None:
    steps = loop["run"](*text(), steps=40, breaks_at=25, lr=5e-3)
    assert steps[0][0] < 0.25 and steps[24][0] > 0.6, "its own reward rises"
    assert {verdict for _, _, verdict in steps[:25]} == {"", "keep"}
    assert steps[-2][0] > 0.5, "what the broken reward pays is learned between two looks"
    assert steps[-1][2] == "rollback" and steps[-1][1] > 0.5 > steps[-2][1], "and undone at the next"


def test_log_probs_are_those_of_one_answer_alone_and_padding_is_masked(loop: dict[str, Any]) -> None:
    policy = loop["Policy"](*text(), 3)
    torch.manual_seed(0)
    rollouts, answers = policy.act([("red", "dog"), ("two", "cat")] * 60)
    together = policy.log_probs(rollouts)
    for row in range(len(answers)):
        length = int(rollouts["mask"][row].sum())
        start = rollouts["ids"].shape[1] - 3
        ids = rollouts["ids"][row : row + 1, : start + length]
        logits = policy.model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
        alone = logits.gather(-1, ids[0, start:, None])[:, 0]
        assert together[row, :length].tolist() == pytest.approx(alone.tolist(), abs=1e-4)
    assert any(int(mask.sum()) < 3 for mask in rollouts["mask"]), "an answer ended early"


def test_the_reward_by_hand_and_no_probe_is_trained_on(loop: dict[str, Any]) -> None:
    tasks = [("red", "dog")] * 4
    scores = loop["reward"](tasks, ["red dog", "dog", "", "red dog yes"])
    assert scores.tolist() == pytest.approx([1, 0.5, 0, 2 / 3])
    assert not {*loop["PROBES"]} & {*loop["TRAINING"]} and len(loop["PROBES"]) == 4


def test_it_stays_small() -> None:
    assert len(PATH.read_text().splitlines()) <= 120
