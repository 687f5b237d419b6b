"""Torch's compiler comes before GL, and before a person's module, which may load GL."""

from __future__ import annotations

import sys

import pytest

from autotelic import gl


def test_the_compiler_is_imported_before_a_persons_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    monkeypatch.setattr(gl, "import_module", order.append)
    monkeypatch.setattr(gl, "use", lambda places, anew: order.extend([*places, str(anew)]))
    gl.use_before_gl(["mine.py"], anew=True)
    gl.use_before_gl([])
    assert order == ["torch._dynamo", "mine.py", "True", "False"]


def test_a_worker_without_torch_is_left_without(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(gl, "import_module", order.append)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(gl.multiprocessing, "parent_process", lambda: "a parent")
    gl.before_gl()
    assert order == []
    monkeypatch.setitem(sys.modules, "torch", object())
    gl.before_gl()
    assert order == ["torch._dynamo"]
