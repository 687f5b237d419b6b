"""Examples: each is short, is called and felt in a run by the command line, resumes, and edits nothing."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autotelic.cli import main
from autotelic.testing import pipelines as tiny
from autotelic.trainers.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "examples").glob("*.py"))
LETTERS = "abcdefghi"


@pytest.fixture(scope="module")
def cost() -> SimpleNamespace:
    """benchmarks/extension_cost.py, which says how each example is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "extension_cost.py")))


@pytest.fixture(scope="module")
def prepared(cost: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    cost.prepare(folder)
    return folder


def command(words: Sequence[str]) -> tuple[int, str]:
    """``autotelic`` in this process."""
    with io.StringIO() as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(words)
        return code, said.getvalue()


@pytest.mark.parametrize("letter", LETTERS)
def test_an_example_is_called_and_felt_and_resumes(
    letter: str, cost: SimpleNamespace, prepared: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]
) -> None:
    chosen = [example for example in cost.EXAMPLES if example.letter == letter]
    if not chosen:
        pytest.skip("this example does not stand here")
    monkeypatch.chdir(prepared)
    monkeypatch.setenv("WITNESS", str(prepared / "resets"))

    def run(words: Sequence[str]) -> tuple[int, str]:
        forget()  # as another process
        return command(words)

    figures = cost.tried(chosen[0], run, prepared, whole=False)
    assert letter != "f" or figures["other_processes"] >= 1


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_is_at_most_60_lines_and_says_what_it_is_and_how_it_runs(file: Path, cost: SimpleNamespace) -> None:
    lines = file.read_text().splitlines()
    assert len(lines) <= 60
    assert lines[0].startswith('"""') and f"examples/{file.name}" in "".join(lines[:4])
    assert file.name == "grpo.py" or file.name in {example.file for example in cost.ALL}
