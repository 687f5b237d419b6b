"""The loop on one screen: it learns, its gate holds what was learned, and it stays on one screen."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PATH = Path(__file__).parents[1] / "docs" / "minimal_loop.py"


@pytest.fixture(scope="module")
def loop() -> dict[str, Any]:
    return runpy.run_path(str(PATH), run_name="minimal_loop")


def test_it_learns_and_the_gate_holds_what_was_learned(loop: dict[str, Any]) -> None:
    gated = loop["run"](loop["Config"]())
    open_to_harm = loop["run"](loop["Config"](gate=False))
    assert gated[0].judged < 0.5 and gated[59].judged > 0.9, "an untrained policy says 0.2 rightly"
    assert gated[59].judged == open_to_harm[59].judged, "until the reward breaks the gate only watches"
    assert {step.verdict for step in gated[:60]} == {"", "keep"} and {step.verdict for step in open_to_harm} == {""}
    assert gated[-1].judged > 0.9 and "rollback" in {step.verdict for step in gated[60:]}
    assert open_to_harm[-1].judged < 0.6 and open_to_harm[-1].reward > 0.6, "it learned what the broken reward pays"
    assert loop["run"](loop["Config"]()) == gated


def test_advantages_and_objective_by_hand(loop: dict[str, Any]) -> None:
    found = loop["advantages"](torch.tensor([1.0, 0.0, 0.5, 0.5]), 2)
    assert found[:, 0].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5), 0, 0], abs=1e-4)
    now, behaviour = torch.tensor([[1.5], [0.5], [1.1], [1.5]]).log(), torch.zeros(4, 1)
    advantage = torch.tensor([[1.0], [-1.0], [2.0], [-1.0]])
    by_hand = -(1.2 - 0.8 + 2 * 1.1 - 1.5) / 4
    assert float(loop["objective"](now, behaviour, advantage, 0.2)) == pytest.approx(by_hand)


def test_probes_are_never_trained_on(loop: dict[str, Any]) -> None:
    training, probes = ({tuple(word) for word in words.tolist()} for words in loop["all_words"]())
    assert len(training) == 500 and len(probes) == 125 and not training & probes


def test_it_prints_what_happened(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(PATH)])
    runpy.run_path(str(PATH), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 25 and lines[0].split() == ["iteration", "reward", "held-out", "gate"]
    assert lines[12].split()[0] == "60" and lines[12].split()[-1] == "keep"


def test_it_stays_small_and_needs_torch_alone() -> None:
    text = PATH.read_text()
    assert len(text.splitlines()) <= 200
    nodes = list(ast.walk(ast.parse(text)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"torch"}
